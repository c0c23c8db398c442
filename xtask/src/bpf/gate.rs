//! What an object has to fulfil before it is worth loading.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use object::{
    Architecture, Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind, SymbolKind, read::elf::ElfFile64,
};

/// Checks that no panic is in the object.
///
/// # Errors
///
/// When one is: the kernel refuses such a program, with a message that does not say so.
pub fn check(object: &[u8]) -> Result<()> {
    let file: ElfFile64<'_> = ElfFile64::parse(object).context("not an ELF object")?;
    let names = file.symbols().map(|symbol| symbol.name()).collect::<Result<Vec<_>, _>>()?;
    let panics: Vec<&str> = names.into_iter().filter(|name| is_panic(name)).collect();
    if !panics.is_empty() {
        bail!(
            "the object can panic ({}), so the kernel would refuse it: \
             look for indexing, `unwrap`, `expect`, an overflow check, or a division by what may be zero",
            panics.join(", ")
        )
    }
    Ok(())
}

/// Checks that none of the object's code handles memory byte by byte.
///
/// # Errors
///
/// When some does: the kernel takes that, and every packet is late.
pub fn check_speed(object: &[u8]) -> Result<()> {
    let file: ElfFile64<'_> = ElfFile64::parse(object).context("not an ELF object")?;
    let calls = bytewise_calls(&file)?;
    if calls.is_empty() {
        return Ok(());
    }
    bail!(
        "the object handles memory byte by byte ({}), which costs each packet some 20 ns: \
         look for a value of several bytes that is cleared, copied or compared as a whole",
        calls.into_iter().collect::<Vec<_>>().join(", ")
    )
}

/// The loops over bytes that `compiler_builtins` brings, where an architecture has no better ones.
const BYTEWISE: [&str; 5] = ["memset", "memcpy", "memmove", "memcmp", "bcmp"];

/// A place in the code: a section's number, and an offset in it.
type Place = (usize, u64);

/// Who calls which of [`BYTEWISE`]. That these are in the object at all, or call each other, costs nothing.
fn bytewise_calls(file: &ElfFile64<'_>) -> Result<BTreeSet<String>> {
    if file.architecture() != Architecture::Bpf {
        bail!("code for {:?}, not for BPF", file.architecture());
    }
    let mut functions = BTreeMap::<Place, &str>::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        if let Some(section) = symbol.section_index() {
            functions.insert((section.0, symbol.address()), symbol.name()?);
        }
    }
    let mut calls = BTreeSet::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let relocations: BTreeMap<u64, RelocationTarget> =
            section.relocations().map(|(at, relocation)| (at, relocation.target())).collect();
        for (at, displacement) in internal_calls(section.data()?) {
            let target = match relocations.get(&at) {
                None => Some((section.index().0, following(at, displacement))),
                Some(RelocationTarget::Symbol(index)) => {
                    let symbol = file.symbol_by_index(*index)?;
                    // From a section's own symbol it is counted as from a call at the section's begin.
                    let of_section = symbol.kind() == SymbolKind::Section;
                    let offset = if of_section { following(0, displacement) } else { symbol.address() };
                    symbol.section_index().map(|section| (section.0, offset))
                }
                Some(_) => None,
            };
            let target = target.and_then(|target| functions.get(&target)).copied().unwrap_or_default();
            let before = functions.range((section.index().0, 0)..=(section.index().0, at)).next_back();
            let caller = before.map_or("an unnamed function", |(_, name)| *name);
            if BYTEWISE.contains(&target) && !BYTEWISE.contains(&caller) {
                calls.insert(format!("{caller} calls {target}"));
            }
        }
    }
    Ok(calls)
}

const INSTRUCTION_BYTES: u64 = 8;

/// The offsets of calls from function to function in code, and how many instructions each goes on from the next one.
fn internal_calls(code: &[u8]) -> impl Iterator<Item = (u64, i32)> {
    /// The opcode of a call, and what its source register says of a target in the same program.
    const CALL: (u8, u8) = (0x85, 1);
    (0..).step_by(INSTRUCTION_BYTES as usize).zip(code.as_chunks().0).filter_map(|(at, instruction)| {
        let [opcode, registers, _, _, displacement @ ..]: [u8; INSTRUCTION_BYTES as usize] = *instruction;
        ((opcode, registers >> 4) == CALL).then_some((at, i32::from_le_bytes(displacement)))
    })
}

/// Where a call goes that stands at `at`.
fn following(at: u64, displacement: i32) -> u64 {
    let bytes = (i64::from(displacement) + 1) * INSTRUCTION_BYTES.cast_signed();
    at.wrapping_add_signed(bytes)
}

/// Mangled or not, the name of each function of `core` that begins a panic contains its module's.
fn is_panic(symbol: &str) -> bool {
    symbol.contains("panicking")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_known_by_its_mangled_name() {
        assert!(is_panic("_ZN4core9panicking18panic_bounds_check17h0123456789abcdefE"));
        assert!(is_panic("_RNvNtCs5q_4core9panicking5panic"));
        assert!(!is_panic("ingress_clients"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(check(b"#!/bin/sh").is_err());
    }

    #[test]
    fn an_object_with_a_panic_is_refused_by_the_name_of_it() {
        // The test binary itself is an ELF file with panics in it.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let message = check(&own).unwrap_err().to_string();
        assert!(message.starts_with("the object can panic ("), "{message}");
        assert!(message.contains("panicking"), "{message}");
    }

    const CALL_BY_SYMBOL: [u8; 8] = [0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff];
    const CALL_A_HELPER: [u8; 8] = [0x85, 0, 0, 0, 1, 0, 0, 0];
    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn an_object_that_clears_memory_byte_by_byte_is_refused_by_its_caller() {
        let called = object("memset", &[CALL_A_HELPER, CALL_BY_SYMBOL, EXIT], &[(8, MEM)]);
        let message = check_speed(&called).unwrap_err().to_string();
        assert!(message.contains("(query calls memset)"), "{message}");
    }

    #[test]
    fn a_call_by_the_name_of_the_section_is_followed() {
        // The function stands two instructions after the section's begin.
        let call = [0x85, 0x10, 0, 0, 1, 0, 0, 0];
        let message = check_speed(&object("bcmp", &[call, EXIT], &[(0, TEXT)])).unwrap_err().to_string();
        assert!(message.contains("(query calls bcmp)"), "{message}");
    }

    #[test]
    fn other_calls_pass_even_where_the_loops_are_in_the_object() {
        check_speed(&object("memset", &[CALL_A_HELPER, EXIT], &[])).unwrap();
        check_speed(&object("begin_flow", &[CALL_BY_SYMBOL, EXIT], &[(0, MEM)])).unwrap();
        // A call of its own begin.
        check_speed(&object("memset", &[CALL_BY_SYMBOL, EXIT], &[])).unwrap();
    }

    /// The numbers of the symbols of [`object`].
    const TEXT: u64 = 1;
    const MEM: u64 = 3;

    /// An object with a program `query` of this code in the section `classifier`, and a function of a name in `.text`,
    /// two instructions after its begin. Each relocation is an offset in the code and a symbol's number.
    fn object(function: &str, code: &[[u8; 8]], relocations: &[(u64, u64)]) -> Vec<u8> {
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let names = format!("\0query\0{function}\0.text\0classifier\0.rel\0.symtab\0.strtab\0");
        let name = |of: &str| names.find(&format!("\0{of}\0")).unwrap() as u64 + 1;
        // Name, kind, and section in the first word, then the value and the size.
        let symbol = |of: u64, info: u64, section: u64, value: u64| words(&[of | info << 32 | section << 48, value, 8]);
        let symbols =
            [vec![0; 24], symbol(0, 3, 1, 0), symbol(name("query"), 0x12, 2, 0), symbol(name(function), 0x12, 1, 16)];
        let relocations = relocations.iter().flat_map(|(at, symbol)| words(&[*at, symbol << 32 | 10])).collect();
        let contents = [[EXIT; 3].concat(), code.concat(), relocations, symbols.concat(), names.clone().into_bytes()];
        // Name and kind, flags, link and info, size of an entry.
        let heads = [
            (name(".text") | 1 << 32, 6, 0, 0),
            (name("classifier") | 1 << 32, 6, 0, 0),
            (name(".rel") | 9 << 32, 0, 4 | 2 << 32, 16),
            (name(".symtab") | 2 << 32, 0, 5 | 2 << 32, 24),
            (name(".strtab") | 3 << 32, 0, 0, 0),
        ];
        let (mut content, mut table) = (vec![], vec![0; 64]);
        for (data, (kind, flags, link, entry)) in contents.iter().zip(heads) {
            let (offset, size) = (64 + content.len() as u64, data.len() as u64);
            table.extend(words(&[kind, flags, 0, offset, size, link, 8, entry]));
            content.extend(data);
            content.resize(content.len().next_multiple_of(8), 0);
        }
        let sections_at = 64 + content.len() as u64;
        // A relocatable file for BPF, of six sections, the last with their names.
        let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(words(&[1 | 247 << 16 | 1 << 32, 0, 0, sections_at, 64 << 32, 64 << 16 | 6 << 32 | 5 << 48]));
        [bytes, content, table].concat()
    }
}
