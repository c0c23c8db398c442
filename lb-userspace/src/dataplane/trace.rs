//! What the programs are told to tell of packets, and the records of it that they write.

use std::{
    fmt, io,
    mem::{self, offset_of},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray},
};
use aya_log::EbpfLogger;
use lb_common::{
    addr::Family,
    trace::{Record, TARGET, Tracer, WINDOWS_PER_SECOND},
};
use log::{Log, Metadata};
use zerocopy::FromBytes as _;

use super::DataplaneError;
use crate::trace::Filter;

/// The maps of the trace, which belong to the programs they were loaded with.
const MAPS: [&str; 2] = ["AYA_LOGS", "TRACER"];

/// The constants of the programs that say what is traced.
pub(super) struct Constants {
    family: u32,
    protocol: u32,
    address: [u32; 4],
    port: u32,
    window: u32,
}

impl Constants {
    /// The constants for what is traced.
    pub(super) fn new(filter: &Filter, jiffies_per_second: u32) -> Self {
        let Filter { family, protocol, address, port } = *filter;
        Self {
            family: match family {
                None => 0,
                Some(Family::V4) => 4,
                Some(Family::V6) => 6,
            },
            protocol: protocol.map_or(0, |protocol| u32::from(protocol.0)),
            address: address.map_or([0; 4], |address| address.0),
            port: port.map_or(0, |port| u32::from(port.0)),
            window: (jiffies_per_second / WINDOWS_PER_SECOND).max(1),
        }
    }

    /// Has the programs loaded with them.
    pub(super) fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        /// Room for what some dozens of CPUs write between two looks.
        const RING: u32 = 1 << 20;
        loader
            .override_global("TRACE_FAMILY", &self.family, true)
            .override_global("TRACE_PROTOCOL", &self.protocol, true)
            .override_global("TRACE_ADDRESS", &self.address, true)
            .override_global("TRACE_PORT", &self.port, true)
            .override_global("TRACE_WINDOW", &self.window, true)
            .map_max_entries(MAPS[0], RING);
    }
}

/// What the programs tell of packets. Clones hear the same.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<Mutex<Sources>>);

#[derive(Debug, Default)]
struct Sources {
    heard: Heard,
    /// One for each object that was loaded: each has a ring of its own.
    all: Vec<Source>,
    received: u64,
    /// What was told to be missing already.
    missed: Missing,
}

struct Source {
    logger: EbpfLogger<Heard>,
    tracers: PerCpuArray<MapData, [u64; WORDS]>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

/// Decisions that were asked for, and of which there is no record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Left out because there were too many in a moment.
    pub left_out: u64,
    /// Written, and lost for want of room.
    pub lost: u64,
}

const WORDS: usize = size_of::<Tracer>() / size_of::<u64>();

impl Told {
    /// Listens also to the programs of an object that was loaded with the trace.
    pub(super) fn listen_to(&self, ebpf: &mut Ebpf) {
        let mut sources = self.sources();
        let tracers = ebpf.take_map(MAPS[1]).expect("the tracing object declares this map");
        let tracers = PerCpuArray::try_from(tracers).expect("it is declared so");
        let logger = EbpfLogger::init_with_logger(ebpf, sources.heard.clone());
        let logger = logger.expect("the tracing object declares the ring, and nobody has taken it");
        sources.all.push(Source { logger, tracers });
    }

    /// What came since this was last asked.
    pub fn records(&self) -> Vec<Record> {
        let mut sources = self.sources();
        for source in &mut sources.all {
            source.logger.flush();
        }
        let records = mem::take(&mut *sources.heard.0.lock().unwrap_or_else(PoisonError::into_inner));
        sources.received += records.len() as u64;
        records
    }

    /// What has gone missing since this was last asked.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn missing(&self) -> Result<Missing, DataplaneError> {
        const WRITTEN: usize = offset_of!(Tracer, written) / size_of::<u64>();
        const LEFT_OUT: usize = offset_of!(Tracer, left_out) / size_of::<u64>();
        let mut sources = self.sources();
        let (mut written, mut left_out) = (0, 0);
        for source in &sources.all {
            let tracers = source.tracers.get(&0, 0).map_err(|error| DataplaneError::Map {
                map: MAPS[1],
                operation: "read".to_owned(),
                source: io::Error::other(error),
            })?;
            written += tracers.iter().map(|tracer| tracer[WRITTEN]).sum::<u64>();
            left_out += tracers.iter().map(|tracer| tracer[LEFT_OUT]).sum::<u64>();
        }
        let now = Missing { left_out, lost: written.saturating_sub(sources.received) };
        let before = mem::replace(&mut sources.missed, now);
        Ok(Missing {
            left_out: now.left_out.saturating_sub(before.left_out),
            lost: now.lost.saturating_sub(before.lost),
        })
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The records as they come out of the ring.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Vec<Record>>>);

impl Log for Heard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == TARGET
    }

    fn log(&self, record: &log::Record<'_>) {
        if let Some(record) = read(&record.args().to_string()) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        }
    }

    fn flush(&self) {}
}

/// A record as its bytes are logged, two digits each.
fn read(digits: &str) -> Option<Record> {
    let digits = digits.as_bytes().as_chunks().0;
    let byte = |[high, low]: &[u8; 2]| {
        let value = |digit: u8| char::from(digit).to_digit(16);
        u8::try_from(value(*high)? << 4 | value(*low)?).ok()
    };
    let bytes = digits.iter().map(byte).collect::<Option<Vec<u8>>>()?;
    Record::read_from_bytes(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    #[test]
    fn a_record_survives_the_log() {
        let bytes: Vec<u8> = (0..).take(size_of::<Record>()).collect();
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(read(&digits).expect("a record").as_bytes(), bytes);
        assert_eq!(read(&digits[2..]), None);
        assert_eq!(read(&digits.replace('0', "x")), None);
    }

    #[test]
    fn a_filter_becomes_constants() {
        let filter: Filter = "udp [fd00::1]:53".parse().expect("a filter");
        let Constants { family, protocol, address, port, window } = Constants::new(&filter, 250);
        assert_eq!((family, protocol, port, window), (6, 17, u32::from(53_u16.to_be()), 25));
        assert_eq!(address, [u32::from_ne_bytes([0xfd, 0, 0, 0]), 0, 0, 1_u32.to_be()]);
        let any = Constants::new(&Filter::default(), 1);
        assert_eq!((any.family, any.protocol, any.address, any.port, any.window), (0, 0, [0; 4], 0, 1));
    }
}
