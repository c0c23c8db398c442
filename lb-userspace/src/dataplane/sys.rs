//! The system calls that aya has no words for: batches of map operations, what a pinned object is, links by interface
//! number, mounts and the grace period.
//! Each is a safe function: sizes are compared with what the kernel says of the map before a pointer is handed over.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    time::Duration,
};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// Numbers of `enum bpf_cmd`, `enum bpf_map_type` and `enum bpf_attach_type` in linux/bpf.h.
const MAP_CREATE: u32 = 0;
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

const TYPE_ARRAY: u32 = 2;
const TYPE_PERCPU_HASH: u32 = 5;
const TYPE_PERCPU_ARRAY: u32 = 6;
const TYPE_LRU_PERCPU_HASH: u32 = 10;
const TYPE_ARRAY_OF_MAPS: u32 = 12;

/// `BPF_F_BEFORE` without a relative: the first of the list.
const BEFORE_ALL: u32 = 1 << 3;

/// `ENOTSUPP`, which only the kernel's inside has a name for.
const ENOTSUPP: i32 = 524;

/// An open map, with its shape as the kernel knows it.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    shape: Shape,
    value_bytes: usize,
}

/// What decides whether a program can use a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The number of its type in linux/bpf.h.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, on each CPU where it has one for each.
    pub value_size: u32,
    /// Entries there is room for.
    pub max_entries: u32,
    /// Flags it was made with.
    pub flags: u32,
}

impl Shape {
    /// The name of the type, as far as this program uses it.
    pub const fn kind_name(self) -> &'static str {
        match self.kind {
            1 => "hash",
            TYPE_ARRAY => "array",
            3 => "program array",
            TYPE_PERCPU_HASH => "per-CPU hash",
            TYPE_PERCPU_ARRAY => "per-CPU array",
            9 => "LRU hash",
            TYPE_LRU_PERCPU_HASH => "per-CPU LRU hash",
            TYPE_ARRAY_OF_MAPS => "array of maps",
            _ => "other",
        }
    }

    const fn is_per_cpu(self) -> bool {
        matches!(self.kind, TYPE_PERCPU_HASH | TYPE_PERCPU_ARRAY | TYPE_LRU_PERCPU_HASH)
    }
}

impl Map {
    /// Opens the map pinned at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = open_pin(path)?;
        let info: MapInfo = info(fd.as_fd())?;
        let shape = Shape {
            kind: info.kind,
            key_size: info.key_size,
            value_size: info.value_size,
            max_entries: info.max_entries,
            flags: info.map_flags,
        };
        let value_bytes = if shape.is_per_cpu() {
            (shape.value_size as usize).next_multiple_of(8) * possible_cpus()?
        } else {
            shape.value_size as usize
        };
        Ok(Self { fd, shape, value_bytes })
    }

    /// Its shape.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// Bytes that hold one value of all CPUs.
    pub const fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Copies the value of `key` to `value`; `false` where there is none.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.check(key.len(), value.len(), 1)?;
        let mut attr = Element {
            map: self.number(),
            zero: 0,
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: `check` found that both slices have the length the kernel reads and writes.
        found(unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) })
    }

    /// Writes the value of `key`.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key.len(), value.len(), 1)?;
        let mut attr =
            Element { map: self.number(), zero: 0, key: key.as_ptr() as u64, value: value.as_ptr() as u64, flags: 0 };
        // SAFETY: `check` found that both slices have the length the kernel reads; it writes to neither.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Removes `key`; `false` where it was not there.
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        self.check(key.len(), self.value_bytes, 1)?;
        let mut attr = Element { map: self.number(), zero: 0, key: key.as_ptr() as u64, value: 0, flags: 0 };
        // SAFETY: `check` found that the key has the length the kernel reads; no value is passed.
        found(unsafe { bpf(MAP_DELETE_ELEM, &mut attr) })
    }

    /// Writes many values, which lie one behind the other, as their keys do. What an error leaves is a prefix.
    pub fn update_many(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let count = keys.len() / self.shape.key_size as usize;
        self.check(keys.len(), values.len(), count)?;
        if count == 0 {
            return Ok(());
        }
        let mut attr = Batch {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: count as u32,
            map: self.number(),
            ..Batch::default()
        };
        // SAFETY: `check` found `count` whole keys and values in the slices, which the kernel only reads.
        unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) }.map(drop)
    }

    /// Calls `visit` with every key and value, `at_once` of them to a system call.
    /// An entry that comes or goes meanwhile may be seen or not.
    pub fn for_each(&self, at_once: usize, mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut at_once = at_once.max(1);
        let mut from = None;
        loop {
            match self.lookup_many(from, at_once, &mut visit) {
                Ok(Some(next)) => from = Some(next),
                Ok(None) => return Ok(()),
                // One bucket of a hash holds more than there was room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => at_once *= 2,
                Err(error) => return Err(error),
            }
        }
    }

    /// Calls `visit` with the values of an array from index `first` to `last`, both included.
    pub fn for_range(&self, first: u32, last: u32, mut visit: impl FnMut(u32, &[u8])) -> io::Result<()> {
        const AT_ONCE: u32 = 1024;
        let last = last.min(self.shape.max_entries.saturating_sub(1));
        let mut next = first;
        while next <= last {
            let count = AT_ONCE.min(last - next + 1);
            // What a batch of an array goes on from is the key before its first.
            self.lookup_many(next.checked_sub(1), count as usize, |key, value| {
                visit(u32::from_ne_bytes(key.try_into().expect("keys of arrays have four bytes")), value);
            })?;
            next += count;
        }
        Ok(())
    }

    /// One batch; what to go on from, or `None` behind the last.
    fn lookup_many(
        &self,
        from: Option<u32>,
        count: usize,
        mut visit: impl FnMut(&[u8], &[u8]),
    ) -> io::Result<Option<u32>> {
        let key_size = self.shape.key_size as usize;
        let mut keys = vec![0; count * key_size];
        let mut values = vec![0; count * self.value_bytes];
        // Of arrays the last key, of hashes a bucket's number: four bytes in both.
        let (from_word, mut next) = (from.unwrap_or(0), 0_u32);
        let mut attr = Batch {
            from: if from.is_some() { &raw const from_word as u64 } else { 0 },
            next: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?,
            map: self.number(),
            ..Batch::default()
        };
        // SAFETY: both vectors have room for `count` keys and values of this map, and both words live until the call
        // returns.
        let more = found(unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) })?;
        let got = attr.count as usize;
        for (key, value) in keys.chunks_exact(key_size).zip(values.chunks_exact(self.value_bytes)).take(got) {
            visit(key, value);
        }
        Ok(more.then_some(next))
    }

    fn check(&self, keys: usize, values: usize, count: usize) -> io::Result<()> {
        if keys == count * self.shape.key_size as usize && values == count * self.value_bytes {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "a key or value has not the map's size"))
        }
    }

    fn number(&self) -> u32 {
        number(self.fd.as_fd())
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What is known of a tcx or XDP link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// The program it runs.
    pub program: u32,
    /// The interface it is on; `None` when that is gone.
    pub ifindex: Option<u32>,
}

/// Where on an interface a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// What comes in, before the kernel has made anything of it.
    Xdp,
    /// What comes in.
    Ingress,
    /// What goes out.
    Egress,
}

impl Point {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Xdp, Self::Ingress, Self::Egress];

    /// Those of traffic control.
    pub const OF_TC: [Self; 2] = [Self::Ingress, Self::Egress];

    /// `xdp`, `ingress` or `egress`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    const fn attach_type(self) -> u32 {
        match self {
            Self::Xdp => 37,
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }
}

/// Opens whatever is pinned at `path`.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Pin { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: `path` ends with a zero and lives until the call returns.
    let fd = unsafe { bpf(OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel just made this descriptor for us and no one else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a map, program or link at `path`.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Pin { path: path.as_ptr() as u64, fd: number(fd), flags: 0 };
    // SAFETY: `path` ends with a zero and lives until the call returns.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// The id of a program.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    info::<ProgramInfo>(program).map(|info| info.id)
}

/// The name of the program with this id, cut to 15 bytes by the kernel.
pub fn program_name(id: u32) -> io::Result<String> {
    let mut attr = ById { id, next: 0, flags: 0 };
    // SAFETY: this command takes no pointers.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) }?;
    // SAFETY: the kernel just made this descriptor for us and no one else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let info: ProgramInfo = info(fd.as_fd())?;
    let name = info.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Attaches a program in front of all others that use tcx.
pub fn tcx_attach(program: BorrowedFd<'_>, ifindex: u32, direction: Point) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        program: number(program),
        ifindex,
        attach_type: direction.attach_type(),
        flags: BEFORE_ALL,
        ..LinkCreate::default()
    };
    // SAFETY: this command takes no pointers for this attach type.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr) }?;
    // SAFETY: the kernel just made this descriptor for us and no one else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How an interface runs an XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XdpMode {
    /// In its driver.
    Native,
    /// In the stack, on any device.
    Generic,
}

impl XdpMode {
    /// `xdp` or `xdp-generic`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "xdp",
            Self::Generic => "xdp-generic",
        }
    }

    /// `XDP_FLAGS_DRV_MODE` and `XDP_FLAGS_SKB_MODE`.
    const fn flags(self) -> u32 {
        match self {
            Self::Native => 1 << 2,
            Self::Generic => 1 << 1,
        }
    }
}

/// Attaches an XDP program, of which an interface has one.
pub fn xdp_attach(program: BorrowedFd<'_>, ifindex: u32, mode: XdpMode) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        program: number(program),
        ifindex,
        attach_type: Point::Xdp.attach_type(),
        flags: mode.flags(),
        ..LinkCreate::default()
    };
    // SAFETY: this command takes no pointers for this attach type.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr) }?;
    // SAFETY: the kernel just made this descriptor for us and no one else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces the program of a link; no packet sees neither.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate { link: number(link), program: number(program), flags: 0, old: 0 };
    // SAFETY: this command takes no pointers.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes a link's program off its interface at once, whoever still holds the link.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = number(link);
    // SAFETY: this command takes no pointers.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

/// What a tcx or XDP link does now.
pub fn link_state(link: BorrowedFd<'_>) -> io::Result<LinkState> {
    let info: LinkInfo = info(link)?;
    Ok(LinkState { program: info.program, ifindex: (info.ifindex != 0).then_some(info.ifindex) })
}

/// Ids of the programs on an interface that use tcx, in the order they run.
pub fn tcx_programs(ifindex: u32, direction: Point) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    let mut attr = Query {
        ifindex,
        attach_type: direction.attach_type(),
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..Query::default()
    };
    // SAFETY: the vector has room for the `count` ids that are asked for.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    ids.truncate(attr.count as usize);
    Ok(ids)
}

/// How to wait until no packet is under way that saw anything of before.
#[derive(Debug)]
pub enum Grace {
    /// `membarrier(MEMBARRIER_CMD_GLOBAL)`, which is `synchronize_rcu`.
    Membarrier,
    /// An update of a map of maps, after which the kernel waits for the readers of the one replaced; where some CPU
    /// runs without ticks (nohz_full), membarrier refuses.
    MapOfMaps {
        /// The map of one map.
        outer: OwnedFd,
        /// The map in it.
        inner: OwnedFd,
    },
}

impl Grace {
    /// The first that this kernel allows.
    pub fn probe() -> io::Result<Self> {
        match membarrier() {
            Ok(()) => Ok(Self::Membarrier),
            Err(_) => Self::map_of_maps(),
        }
    }

    /// The way that every kernel allows.
    pub fn map_of_maps() -> io::Result<Self> {
        let inner = create_map(TYPE_ARRAY, 4, None)?;
        let outer = create_map(TYPE_ARRAY_OF_MAPS, 4, Some(inner.as_fd()))?;
        Ok(Self::MapOfMaps { outer, inner })
    }

    /// Waits.
    pub fn wait(&self) -> io::Result<()> {
        match self {
            Self::Membarrier => membarrier(),
            Self::MapOfMaps { outer, inner } => {
                let (key, value) = (0_u32, number(inner.as_fd()));
                let mut attr = Element {
                    map: number(outer.as_fd()),
                    zero: 0,
                    key: &raw const key as u64,
                    value: &raw const value as u64,
                    flags: 0,
                };
                // SAFETY: `create_map` made the outer map with keys and values of four bytes, as both words are.
                unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
            }
        }
    }
}

/// Whether `path` lies on a bpf filesystem.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let path = c_path(path)?;
    // SAFETY: all of `statfs` is numbers, for which zero is a value.
    let mut found = unsafe { std::mem::zeroed::<libc::statfs>() };
    // SAFETY: `path` ends with a zero, and `found` has the type the call fills.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.f_type as i64 & 0xffff_ffff == BPF_FS_MAGIC)
}

/// Mounts a bpf filesystem at `path`.
pub fn mount_bpffs(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: all five are strings that end with a zero and live until the call returns.
    let done = unsafe { libc::mount(c"bpf".as_ptr(), path.as_ptr(), c"bpf".as_ptr(), 0, c"mode=0700".as_ptr().cast()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Unmounts what is mounted at `path`. Where it is in use it stays.
pub fn unmount(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the path is a string that ends with a zero and lives until the call returns.
    if unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        error => Err(error),
    }
}

/// The length of one jiffy.
pub fn jiffy() -> io::Result<Duration> {
    let mut length = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `length` has the type the call fills.
    if unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(length.tv_sec as u64, length.tv_nsec as u32))
}

/// CPUs that may ever be there: a value of a per-CPU map has a place for each.
pub fn possible_cpus() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(_, error)| error)
}

/// A socket that talks to the kernel about the network of this process's namespace.
pub fn netlink_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket takes three numbers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us and no one else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Unlinks a pin; nothing to do where there is none.
pub fn unpin(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn membarrier() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: membarrier takes three numbers.
    if unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A map of one entry, of four-byte keys.
fn create_map(kind: u32, value_size: u32, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let mut attr = Create { kind, key_size: 4, value_size, max_entries: 1, flags: 0, inner: inner.map_or(0, number) };
    // SAFETY: this command takes no pointers.
    let fd = unsafe { bpf(MAP_CREATE, &mut attr) }?;
    // SAFETY: the kernel just made this descriptor for us and no one else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel says of an object, as far as `T` has room.
fn info<T: FromBytes + IntoBytes + Immutable + KnownLayout>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::new_zeroed();
    let mut attr = InfoByFd { fd: number(fd), length: size_of::<T>() as u32, info: &raw mut info as u64 };
    // SAFETY: the kernel writes at most `length` bytes, which `info` has and any values of which make a `T`.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// `false` for what is not there.
fn found(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) if error.raw_os_error() == Some(ENOTSUPP) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel has no such operation for this type of map"))
        }
        Err(error) => Err(error),
    }
}

/// bpf(2).
///
/// # Safety
/// Every pointer in `attr` must be valid for what `command` does with it.
unsafe fn bpf<A: IntoBytes>(command: u32, attr: &mut A) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most the size given, and takes what is beyond it as zero; the pointers
    // inside are the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

// Parts of `union bpf_attr` and of the info records, in the order of linux/bpf.h.

#[derive(IntoBytes)]
#[repr(C)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
}

#[derive(IntoBytes)]
#[repr(C)]
struct Element {
    map: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(Default, IntoBytes)]
#[repr(C)]
struct Batch {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[derive(IntoBytes)]
#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

#[derive(IntoBytes)]
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

#[derive(IntoBytes)]
#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

#[derive(Default, IntoBytes)]
#[repr(C)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    zero: u32,
    revision: u64,
}

#[derive(IntoBytes)]
#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

#[derive(Default, IntoBytes)]
#[repr(C)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    zero: u32,
    program_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    zero: u32,
    ifindex: u32,
    /// Of tcx alone.
    attach_type: u32,
}
