//! curl: fetches and uploads whole bodies; and many short connections of our own beside it.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{namespace::Namespace, process::Running};

/// The address of a page.
pub fn url(server: SocketAddr, path: &str) -> String {
    format!("http://{server}{path}")
}

/// Fetches a page and returns its bytes.
///
/// # Errors
/// No answer within 20 s, or another status than 200.
pub fn get(client: &Namespace, url: &str) -> Result<Vec<u8>> {
    let mut command = client.command("curl");
    let output = command.args(COMMON).arg(url).stdin(Stdio::null()).output().context("curl: not started")?;
    ensure!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

/// A download on its way.
#[derive(Debug)]
pub struct Download {
    url: String,
    running: Running,
    file: PathBuf,
}

impl Download {
    /// Starts to fetch nginx's large file into `file`, at this many bytes a second.
    ///
    /// The server keeps the rate: curl's own limit is missed by a third and more.
    ///
    /// # Errors
    /// curl does not start.
    pub fn start(client: &Namespace, server: SocketAddr, bytes_per_second: usize, file: PathBuf) -> Result<Self> {
        let url = url(server, &format!("/slow/large?rate={bytes_per_second}"));
        let mut command = client.command("curl");
        command.args(COMMON).args(["--max-time", "90", "-o"]).arg(&file).arg(&url);
        let running = Running::start("curl", command, &file.with_extension("log"))?;
        Ok(Self { url, running, file })
    }

    /// Says that it is still on its way.
    ///
    /// # Errors
    /// It has ended; how far it came is in the error.
    pub fn still_runs(&mut self) -> Result<()> {
        if !self.running.is_running()? {
            let bytes = fs::metadata(&self.file).map_or(0, |file| file.len());
            bail!("{} has ended after {bytes} bytes: {}", self.url, self.running.log_tail());
        }
        Ok(())
    }

    /// Waits for its end and returns what came.
    ///
    /// # Errors
    /// It broke off.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        let status = self.running.wait(Duration::from_secs(95))?;
        ensure!(status.success(), "{}: {status}: {}", self.url, self.running.log_tail());
        fs::read(&self.file).with_context(|| self.file.display().to_string())
    }
}

/// Puts a file to an address.
///
/// # Errors
/// No answer within 20 s, or a status that is no success.
pub fn put(client: &Namespace, file: &Path, url: &str) -> Result<()> {
    let mut command = client.command("curl");
    command.args(COMMON).arg("--upload-file").arg(file).arg(url);
    crate::process::output(&mut command).map(drop)
}

/// Fetches a small page over `count` connections, one after the other, and returns how often each body came.
///
/// # Errors
/// A connection is refused or breaks; the number of those that went well is in the error.
pub fn short_connections(
    client: &Namespace,
    server: SocketAddr,
    path: &str,
    count: usize,
) -> Result<BTreeMap<String, usize>> {
    client.enter(|| {
        let mut bodies = BTreeMap::new();
        for done in 0..count {
            let body = fetch(server, path).with_context(|| format!("after {done} connections to {server}"))?;
            *bodies.entry(body).or_default() += 1;
        }
        Ok(bodies)
    })
}

/// The same from several threads at once, each with its part of the connections.
///
/// # Errors
/// As [`short_connections`].
pub fn short_connections_at_once(
    client: &Namespace,
    server: SocketAddr,
    path: &str,
    count: usize,
    threads: usize,
) -> Result<BTreeMap<String, usize>> {
    let parts = thread::scope(|scope| {
        let part = |part: usize| count * (part + 1) / threads - count * part / threads;
        let spawn = |index| scope.spawn(move || short_connections(client, server, path, part(index)));
        let running: Vec<_> = (0..threads).map(spawn).collect();
        running.into_iter().map(|thread| thread.join().expect("no client panics")).collect::<Result<Vec<_>>>()
    })?;
    Ok(sum(parts))
}

/// Short connections that run beside something else.
#[derive(Debug, Default)]
pub struct Beside {
    done: AtomicUsize,
    is_broken: AtomicBool,
    is_over: AtomicBool,
}

impl Beside {
    /// How many have been made and answered until now.
    ///
    /// # Errors
    /// One was not, and there will be no more from its thread.
    pub fn done(&self) -> Result<usize> {
        ensure!(!self.is_broken.load(Ordering::SeqCst), "a short connection broke");
        Ok(self.done.load(Ordering::SeqCst))
    }

    fn fetch_on(&self, server: SocketAddr, path: &str) -> Result<BTreeMap<String, usize>> {
        let mut bodies = BTreeMap::new();
        while !self.is_over.load(Ordering::SeqCst) {
            let fetched = fetch(server, path);
            self.is_broken.fetch_or(fetched.is_err(), Ordering::SeqCst);
            let done = self.done.load(Ordering::SeqCst);
            *bodies.entry(fetched.with_context(|| format!("after {done} connections to {server}"))?).or_default() += 1;
            self.done.fetch_add(1, Ordering::SeqCst);
        }
        Ok(bodies)
    }
}

/// Fetches a small page over short connections from several threads at once for as long as `work` takes, and returns
/// what that did and how often each body came.
///
/// # Errors
/// As [`short_connections`], or `work` returns an error.
pub fn short_connections_beside<T>(
    client: &Namespace,
    server: SocketAddr,
    path: &str,
    threads: usize,
    work: impl FnOnce(&Beside) -> Result<T>,
) -> Result<(T, BTreeMap<String, usize>)> {
    let beside = Beside::default();
    let (worked, parts) = thread::scope(|scope| {
        let spawn = |_| scope.spawn(|| client.enter(|| beside.fetch_on(server, path)));
        let running: Vec<_> = (0..threads).map(spawn).collect();
        let worked = work(&beside);
        beside.is_over.store(true, Ordering::SeqCst);
        let ended = running.into_iter().map(|thread| thread.join().expect("no client panics"));
        (worked, ended.collect::<Result<Vec<_>>>())
    });
    // A connection that broke is why the work has ended with an error, if it has.
    let bodies = sum(parts?);
    Ok((worked?, bodies))
}

fn sum(parts: Vec<BTreeMap<String, usize>>) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for (body, count) in parts.into_iter().flatten() {
        *all.entry(body).or_default() += count;
    }
    all
}

/// Nobody's curlrc (which has to come first), silent but for errors, no proxy, a bound in time.
const COMMON: [&str; 6] = ["-q", "-sSfg", "--noproxy", "*", "--max-time", "20"];

fn fetch(server: SocketAddr, path: &str) -> Result<String> {
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&server, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: lab\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    ensure!(head.contains(" 200 "), "{}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}
