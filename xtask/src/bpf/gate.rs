//! What an object has to fulfil before it is worth loading.

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSymbol, read::elf::ElfFile64};

/// Checks that no panic is in the object.
///
/// # Errors
///
/// When one is: the kernel refuses such a program, with a message that does not say so.
pub fn check(object: &[u8]) -> Result<()> {
    let names = symbols(object)?;
    let panics: Vec<&str> = names.iter().map(String::as_str).filter(|name| is_panic(name)).collect();
    if panics.is_empty() {
        return Ok(());
    }
    bail!(
        "the object can panic ({}), so the kernel would refuse it: \
         look for indexing, `unwrap`, `expect`, an overflow check, or a division by what may be zero",
        panics.join(", ")
    )
}

fn symbols(object: &[u8]) -> Result<Vec<String>> {
    let file: ElfFile64<'_> = ElfFile64::parse(object).context("not an ELF object")?;
    file.symbols().map(|symbol| Ok(symbol.name()?.to_owned())).collect()
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
}
