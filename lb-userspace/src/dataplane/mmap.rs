//! A mapping of an array map: the words that the packet path works with, as atomics.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    slice,
    sync::atomic::AtomicU64,
};

use super::sys::Map;

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only; a store would end the process.
    Read,
    /// Loads and stores.
    Write,
}

/// An array map in this process's memory. All access is by 64-bit atomics, because the packet path and other processes
/// change the same words.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<AtomicU64>,
    length: NonZeroUsize,
    entries: u32,
    words_per_entry: usize,
}

// SAFETY: the mapping belongs to no thread, and what it lends are shared references to atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the whole of `map`, an array made with `BPF_F_MMAPABLE` whose values are whole words.
    pub fn new(map: &Map, access: Access) -> io::Result<Self> {
        let shape = map.shape();
        let word = size_of::<u64>();
        if !map.value_bytes().is_multiple_of(word) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "its values are not whole words"));
        }
        let length = NonZeroUsize::new(map.value_bytes() * shape.max_entries as usize)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is empty"))?;
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length.get(), protection, libc::MAP_SHARED, map.as_fd().as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("no mapping begins at address zero");
        Ok(Self { start, length, entries: shape.max_entries, words_per_entry: map.value_bytes() / word })
    }

    /// Entries there are.
    pub const fn entries(&self) -> u32 {
        self.entries
    }

    /// The words of entry `index`; `None` beyond the last.
    pub fn entry(&self, index: u32) -> Option<&[AtomicU64]> {
        let words = self.words_per_entry;
        self.words().get(index as usize * words..(index as usize + 1) * words)
    }

    /// The words of every entry, in order.
    pub fn all(&self) -> impl Iterator<Item = &[AtomicU64]> {
        self.words().chunks_exact(self.words_per_entry)
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `new` mapped `length` bytes from `start`, a page's begin and so aligned, which stay until `drop`; they
        // are initialised by the kernel, and all of this process's access to them is atomic.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length.get() / size_of::<AtomicU64>()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` made exactly this mapping, and every reference into it was borrowed from `self`.
        // The result says nothing that could be acted upon.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length.get()) };
    }
}
