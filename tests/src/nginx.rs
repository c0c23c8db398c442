//! nginx with a large file to fetch, a folder to upload into, and a page that says who served it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::{
    curl,
    lab::{Host, Lab},
    process::{Running, wait_until},
};

/// The size of the file to fetch: 20 MB.
pub const LARGE: usize = 20_000_000;

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    who: String,
    directory: PathBuf,
    running: Running,
}

impl Nginx {
    /// Starts one on each backend of the lab, named `b1`, `b2`, …, and waits until they answer.
    ///
    /// # Errors
    /// As [`Nginx::start`].
    pub fn start_all(lab: &Lab) -> Result<Vec<Self>> {
        let start = |(index, host): (usize, &Host)| Self::start(lab, &format!("b{}", index + 1), host);
        lab.backends().iter().enumerate().map(start).collect()
    }

    /// Starts one on a host and waits until it answers over both families; `/who` is its name, `/large` has
    /// [`LARGE`] bytes, `/slow/large?rate=BYTES` has them at so many bytes a second, and what is put to `/up/NAME` is
    /// kept.
    ///
    /// # Errors
    /// It does not start; the end of its log is in the error.
    pub fn start(lab: &Lab, who: &str, host: &Host) -> Result<Self> {
        let directory = lab.directory(&format!("nginx-{who}"))?;
        for folder in ["www/up", "tmp"] {
            fs::create_dir_all(directory.join(folder))?;
        }
        fs::write(directory.join("www/who"), who)?;
        let large = large_file(lab)?;
        if !directory.join("www/large").exists() {
            fs::hard_link(&large, directory.join("www/large"))?;
        }
        let configuration = directory.join("nginx.conf");
        fs::write(&configuration, nginx_conf(&directory))?;
        let mut command = host.namespace.command("nginx");
        command.args(["-e", "stderr", "-p"]).arg(&directory).arg("-c").arg(&configuration);
        let mut running = Running::start(who, command, &directory.join("log"))?;
        for address in [host.v4, host.v6] {
            let url = curl::url(SocketAddr::new(address, 80), "/who");
            wait_until(&format!("nginx of {who} answers at {address}"), Duration::from_secs(10), || {
                ensure!(running.is_running()?, "nginx of {who} has ended: {}", running.log_tail());
                Ok(curl::get(&host.namespace, &url).is_ok_and(|body| body == who.as_bytes()))
            })?;
        }
        Ok(Self { who: who.to_owned(), directory, running })
    }

    /// The name it answers with.
    pub fn who(&self) -> &str {
        &self.who
    }

    /// What was put to `/up/NAME`, if anything was.
    ///
    /// # Errors
    /// It is there but cannot be read.
    pub fn uploaded(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.directory.join("www/up").join(name);
        if !path.exists() {
            return Ok(None);
        }
        fs::read(&path).map(Some).with_context(|| path.display().to_string())
    }

    /// Takes away what was put to `/up/NAME`, if anything was, and returns it.
    ///
    /// # Errors
    /// As [`Nginx::uploaded`], or it stays.
    pub fn take_upload(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let bytes = self.uploaded(name)?;
        if bytes.is_some() {
            fs::remove_file(self.directory.join("www/up").join(name))?;
        }
        Ok(bytes)
    }

    /// Ends it as an operator would, and waits until it is gone.
    ///
    /// # Errors
    /// It does not go.
    pub fn stop(mut self) -> Result<()> {
        self.running.signal(Signal::SIGTERM)?;
        self.running.wait(Duration::from_secs(10)).map(drop)
    }
}

/// The bytes of `/large`: no two neighbourhoods alike, so that a segment at a wrong place shows.
pub fn large() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut word = || {
        // Marsaglia, "Xorshift RNGs", 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..LARGE / 8).flat_map(|_| word()).collect()
}

/// One file for all servers of the lab.
fn large_file(lab: &Lab) -> Result<PathBuf> {
    let path = lab.directory("nginx")?.join("large");
    if !path.exists() {
        fs::write(&path, large())?;
    }
    Ok(path)
}

/// One process without a master, so that ending it by its pid ends all of it.
fn nginx_conf(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r"daemon off;
master_process off;
pid {directory}/pid;
error_log stderr;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    default_type application/octet-stream;
    client_max_body_size 0;
    client_body_temp_path {directory}/tmp/body;
    proxy_temp_path {directory}/tmp/proxy;
    fastcgi_temp_path {directory}/tmp/fastcgi;
    uwsgi_temp_path {directory}/tmp/uwsgi;
    scgi_temp_path {directory}/tmp/scgi;
    server {{
        listen 80;
        listen [::]:80 ipv6only=on;
        root {directory}/www;
        location /up/ {{ dav_methods PUT; }}
        location /slow/ {{ alias {directory}/www/; limit_rate $arg_rate; sendfile_max_chunk 64k; }}
    }}
}}
"
    )
}
