//! What an XDP program leaves in front of a packet for the TC program of the same interface.

use lb_ebpf::pipeline::Decided;

use super::maps;

/// A packet's metadata: who decided, and what. The kernel takes multiples of four bytes, up to 32.
#[repr(C)]
pub(crate) struct Note {
    /// Tells ours from those of other programs.
    mark: [u32; 2],
    decided: u32,
    zero: u32,
}

impl Note {
    /// A note of this.
    #[inline(always)]
    pub(crate) fn write(&mut self, decided: Decided) {
        self.mark = mark();
        self.decided = decided.0;
        self.zero = 0;
    }

    /// What it says, if it is ours.
    #[inline(always)]
    pub(crate) fn read(&self) -> Option<Decided> {
        let [low, high] = mark();
        if self.mark[0] != low || self.mark[1] != high {
            return None;
        }
        Some(Decided(self.decided))
    }
}

/// A secret of these maps, so that what other programs write is not taken for ours. Not used for anything else as it is.
#[inline(always)]
fn mark() -> [u32; 2] {
    let word = maps::secret_word(0).rotate_left(17) ^ maps::secret_word(1);
    [word as u32, (word >> 32) as u32]
}
