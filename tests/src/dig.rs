//! dig: one question, and everything it says about the answer.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use crate::namespace::Namespace;

/// An answer as dig reports it; dig itself refuses one from a wrong source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status, `NOERROR` if all went well.
    pub status: String,
    /// The character strings of all TXT records, joined per record.
    pub texts: Vec<String>,
    /// The whole message's length in bytes.
    pub size: usize,
    /// Whether it came over TCP, asked so or because the answer over UDP was cut.
    pub over_tcp: bool,
}

/// Asks for a TXT record over UDP, taking answers of up to 4096 bytes, without cookie and second try.
///
/// # Errors
/// No answer within 2 s.
pub fn udp(client: &Namespace, server: SocketAddr, name: &str) -> Result<Answer> {
    ask(client, server, name, &["+bufsize=4096"])
}

/// Asks for a TXT record over TCP.
///
/// # Errors
/// As [`udp`].
pub fn tcp(client: &Namespace, server: SocketAddr, name: &str) -> Result<Answer> {
    ask(client, server, name, &["+tcp"])
}

/// Asks for a TXT record with options of the caller's.
///
/// # Errors
/// As [`udp`].
pub fn ask(client: &Namespace, server: SocketAddr, name: &str, options: &[&str]) -> Result<Answer> {
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    let common = ["-r", &at, "-p", &port, "+nocookie", "+tries=1", "+timeout=2", name, "TXT"];
    let arguments: Vec<_> = common.into_iter().chain(options.iter().copied()).collect();
    let output = client.run("dig", &arguments).with_context(|| format!("dig {name} at {server}"))?;
    parse(&output).with_context(|| format!("dig {name} at {server}: {output}"))
}

fn parse(output: &str) -> Option<Answer> {
    let after = |mark: &str| output.split_once(mark).map(|(_, rest)| rest);
    let status = after("status: ")?.split(',').next()?.to_owned();
    let size = after(";; MSG SIZE  rcvd: ")?.lines().next()?.trim().parse().ok()?;
    let over_tcp = after(";; SERVER: ")?.lines().next()?.ends_with("(TCP)");
    let records = output.lines().filter(|line| !line.starts_with(';'));
    let texts = records.filter_map(|line| line.split_once("\tTXT\t")).map(|(_, strings)| unquote(strings)).collect();
    Some(Answer { status, texts, size, over_tcp })
}

/// Joins quoted character strings.
fn unquote(strings: &str) -> String {
    strings.split('"').skip(1).step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_dig_is_read() {
        let output = ";; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: 1\n;who.example.test.\t\tIN\tTXT\n\n\
                      who.example.test.\t60\tIN\tTXT\t\"b\" \"1\"\n\n;; SERVER: 10.9.0.2#53(10.9.0.2) (UDP)\n\
                      ;; MSG SIZE  rcvd: 60\n";
        let expected = Answer { status: "NOERROR".into(), texts: vec!["b1".into()], size: 60, over_tcp: false };
        assert_eq!(parse(output), Some(expected));
    }
}
