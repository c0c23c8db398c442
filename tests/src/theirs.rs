//! Someone else's XDP program: an object file made here from its bytes, put on a device by `ip`.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::lab::Lab;

/// The name of the program, as the kernel shows it.
pub const NAME: &str = "theirs";

/// An object with one program that passes every packet.
#[derive(Clone, Debug)]
pub struct Theirs {
    object: PathBuf,
}

impl Theirs {
    /// Writes the object where the lab has its files.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(lab: &Lab) -> Result<Self> {
        let object = lab.directory("theirs")?.join("pass.o");
        fs::write(&object, elf()).with_context(|| object.display().to_string())?;
        Ok(Self { object })
    }

    /// Puts the program on a device of the balancer, in its driver where that has a place for it.
    ///
    /// # Errors
    /// The device has one.
    pub fn attach(&self, lab: &Lab, device: &str) -> Result<()> {
        let object = self.object.display().to_string();
        // In mounts of its own: `ip` mounts a bpf filesystem if need be, makes folders in it, and leaves both.
        let put =
            format!("mount -t bpf bpf /sys/fs/bpf && exec ip link set dev {device} xdp object {object} section xdp");
        lab.balancer().run("unshare", &["--mount", "sh", "-c", &put])?;
        Ok(())
    }

    /// Takes it away.
    ///
    /// # Errors
    /// The device is gone.
    pub fn detach(&self, lab: &Lab, device: &str) -> Result<()> {
        lab.balancer().run("ip", &["link", "set", "dev", device, "xdp", "off"])?;
        Ok(())
    }
}

/// `r0 = XDP_PASS; exit`.
const CODE: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// A section of an ELF object, in elf(5)'s order of what its header says.
#[derive(Clone, Copy)]
struct Section<'s> {
    name: &'static str,
    kind: u32,
    flags: u64,
    content: &'s [u8],
    /// The section with the names of this one's symbols.
    link: u32,
    /// The first symbol that is global.
    info: u32,
    /// The size of an entry.
    entry: u64,
}

/// A relocatable object of ELF64 for BPF, elf(5): the header, the sections, and the table of sections.
fn elf() -> Vec<u8> {
    const HEADER: usize = 64;
    let strings = format!("\0{NAME}\0xdp\0license\0.strtab\0.symtab\0").into_bytes();
    let name = |wanted: &str| {
        let found = strings.windows(wanted.len()).position(|window| window == wanted.as_bytes());
        u32::try_from(found.expect("a name of the table")).expect("a short table")
    };
    // The null symbol, then a global function in section 1.
    let mut symbols = vec![0; 24];
    symbols.extend_from_slice(&name(NAME).to_le_bytes());
    symbols.extend_from_slice(&[0x12, 0, 1, 0]);
    symbols.extend_from_slice(&0_u64.to_le_bytes());
    symbols.extend_from_slice(&(CODE.len() as u64).to_le_bytes());
    let plain = Section { name: "", kind: 1, flags: 0, content: &[], link: 0, info: 0, entry: 0 };
    let sections = [
        Section { name: "xdp", flags: 6, content: &CODE, ..plain },
        Section { name: "license", flags: 3, content: b"GPL\0", ..plain },
        Section { name: ".strtab", kind: 3, content: &strings, ..plain },
        Section { name: ".symtab", kind: 2, content: &symbols, link: 3, info: 1, entry: 24, ..plain },
    ];
    let mut body = Vec::new();
    let mut table = vec![0; HEADER];
    for Section { name: section, kind, flags, content, link, info, entry } in sections {
        body.resize(body.len().next_multiple_of(8), 0);
        let offset = (HEADER + body.len()) as u64;
        body.extend_from_slice(content);
        table.extend_from_slice(&name(section).to_le_bytes());
        table.extend_from_slice(&kind.to_le_bytes());
        for number in [flags, 0, offset, content.len() as u64] {
            table.extend_from_slice(&number.to_le_bytes());
        }
        table.extend_from_slice(&link.to_le_bytes());
        table.extend_from_slice(&info.to_le_bytes());
        table.extend_from_slice(&8_u64.to_le_bytes());
        table.extend_from_slice(&entry.to_le_bytes());
    }
    body.resize(body.len().next_multiple_of(8), 0);
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_REL, EM_BPF, version 1, no entry, no program headers.
    elf.extend_from_slice(&[1, 0, 247, 0, 1, 0, 0, 0]);
    for number in [0, 0, (HEADER + body.len()) as u64] {
        elf.extend_from_slice(&number.to_le_bytes());
    }
    elf.extend_from_slice(&0_u32.to_le_bytes());
    // The size of this header; none of programs; that of a section's, how many, and which has the names.
    for number in [64_u16, 0, 0, 64, 5, 3] {
        elf.extend_from_slice(&number.to_le_bytes());
    }
    [elf, body, table].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_as_long_as_it_says() {
        let elf = elf();
        let table = u64::from_le_bytes(elf[40..48].try_into().expect("8 bytes"));
        assert_eq!(elf.len() as u64, table + 5 * 64);
        assert_eq!(elf[64..80], CODE);
    }
}
