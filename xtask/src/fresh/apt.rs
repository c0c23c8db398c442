//! Where this machine gets its packages from, so that the new root gets them from there too.

use std::fs;

use anyhow::{Context, Result};

/// The release that the set-up is proven on.
pub(crate) const RELEASE: &str = "bookworm";

/// Returns the address of the mirror that this machine uses for the release.
///
/// # Errors
///
/// When its sources name none: they are those of another distribution or release.
pub(crate) fn mirror() -> Result<String> {
    let folder = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<_> = folder.collect();
    paths.sort();
    paths.insert(0, "/etc/apt/sources.list".into());
    let named = |path: &&std::path::PathBuf| path.extension().is_some_and(|end| end == "list" || end == "sources");
    let texts = paths.iter().filter(named).filter_map(|path| fs::read_to_string(path).ok());
    let text: String = texts.flat_map(|text| [text, "\n\n".to_owned()]).collect();
    mirror_of(&text).with_context(|| format!("this machine's apt knows no mirror of Debian {RELEASE}"))
}

/// Reads both forms of sources: one line each, and paragraphs of fields.
fn mirror_of(sources: &str) -> Option<String> {
    sources.lines().find_map(of_line).or_else(|| sources.split("\n\n").find_map(of_paragraph))
}

fn of_line(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
    let mut words = rest.split_whitespace();
    let address = words.next()?;
    (words.next()? == RELEASE).then(|| address.to_owned())
}

fn of_paragraph(paragraph: &str) -> Option<String> {
    let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name));
    let is_on = field("Enabled:").is_none_or(|value| value.trim() != "no");
    let has_release = field("Suites:")?.split_whitespace().any(|suite| suite == RELEASE);
    let address = field("URIs:")?.split_whitespace().next()?;
    (is_on && has_release).then(|| address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_read_from_lines() {
        let sources = "# deb http://old.test/debian bookworm main\n\
                       deb http://a.test/debian bookworm-updates main\n\
                       deb [arch=amd64 signed-by=/k] http://b.test/debian bookworm main\n";
        assert_eq!(mirror_of(sources).as_deref(), Some("http://b.test/debian"));
    }

    #[test]
    fn the_mirror_is_read_from_paragraphs() {
        let sources = "Types: deb\nURIs: http://s.test/debian-security\nSuites: bookworm-security\n\n\
                       Types: deb\n# a comment\nURIs: http://a.test/debian\nSuites: bookworm bookworm-updates\n";
        assert_eq!(mirror_of(sources).as_deref(), Some("http://a.test/debian"));
    }

    #[test]
    fn a_source_that_is_off_or_of_another_release_is_no_mirror() {
        assert_eq!(mirror_of("Enabled: no\nURIs: http://a.test/debian\nSuites: bookworm\n"), None);
        assert_eq!(mirror_of("deb http://a.test/ubuntu noble main\n"), None);
    }
}
