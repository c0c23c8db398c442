//! curl: fetches and uploads whole bodies; and many short connections of our own beside it.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

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
    /// Starts to fetch a page at this many bytes a second, into `file`.
    ///
    /// # Errors
    /// curl does not start.
    pub fn start(client: &Namespace, url: &str, bytes_per_second: usize, file: PathBuf) -> Result<Self> {
        let mut command = client.command("curl");
        command.args(COMMON).args(["--max-time", "90", "--limit-rate", &bytes_per_second.to_string(), "-o"]);
        command.arg(&file).arg(url);
        let running = Running::start("curl", command, &file.with_extension("log"))?;
        Ok(Self { url: url.to_owned(), running, file })
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
    let mut all = BTreeMap::new();
    for (body, count) in parts.into_iter().flatten() {
        *all.entry(body).or_default() += count;
    }
    Ok(all)
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
