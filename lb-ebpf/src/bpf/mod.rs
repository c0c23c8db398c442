//! Everything that is BPF: the maps, the bounds check, the helpers. All unsafe code of the data path but the atomics.

use core::{arch::asm, ffi::c_void};

pub(crate) mod kernel;
pub(crate) mod maps;
pub(crate) mod note;
pub(crate) mod tc;
#[cfg_attr(not(feature = "trace"), path = "no_trace.rs")]
pub(crate) mod trace;
pub(crate) mod xdp;

/// What a program is run with, at whichever hook.
pub(crate) trait Context {
    /// What the helpers take.
    fn pointer(&self) -> *mut c_void;

    /// The device that the packet came in by, or goes out of.
    fn ifindex(&self) -> u32;
}

/// Reads the word at `OFFSET` of a context.
///
/// In one instruction: the compiler would add the offset early and keep the sum, and the verifier refuses a pointer to a
/// context that was added to.
///
/// # Safety
/// The context is that of the running program, and has a word there.
#[inline(always)]
unsafe fn word_of<const OFFSET: usize>(context: *const c_void) -> u32 {
    let word: u64;
    // SAFETY: as the caller says.
    unsafe {
        asm!(
            "{word} = *(u32 *)({context} + {offset})",
            word = lateout(reg) word,
            context = in(reg) context,
            offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    word as u32
}
