//! What may be told of an error in a place that many can read.

/// The error's own words: without a stack trace, without control characters, with what looks like credentials masked, and cut
/// to at most `cap` bytes.
pub(in crate::consumer) fn clean(text: &str, cap: usize) -> String {
    let text = mask_words(&mask_urls(without_trace(text)));
    let mut clean: String =
        text.trim().chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { ' ' } else { c }).collect();
    if clean.len() > cap {
        let room = cap.saturating_sub(CUT.len());
        clean.truncate(clean.floor_char_boundary(room));
        if cap >= CUT.len() {
            clean.push_str(CUT);
        }
    }
    clean
}

/// Stands where a text was cut.
const CUT: &str = "…";
const MASK: &str = "***";

/// What stands before a backtrace, as the standard library, `anyhow` and `eyre` write it.
fn without_trace(text: &str) -> &str {
    const MARK: &[u8] = b"stack backtrace:";
    let found = text.as_bytes().windows(MARK.len()).position(|window| window.eq_ignore_ascii_case(MARK));
    // The mark is ASCII, so that it begins between two characters.
    found.and_then(|at| text.get(..at)).unwrap_or(text)
}

/// `postgres://user:secret@host/db` becomes `postgres://***@host/db`.
fn mask_urls(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        masked.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/?#\"'<>`".contains(c)).unwrap_or(after.len());
        let (authority, next) = after.split_at(end);
        match authority.rfind('@') {
            Some(host) => {
                masked.push_str(MASK);
                masked.push_str(authority.get(host..).unwrap_or_default());
            }
            // Cut off before its host, as far as can be told.
            None if next.is_empty() && is_half(authority) => masked.push_str(MASK),
            None => masked.push_str(authority),
        }
        rest = next;
    }
    masked.push_str(rest);
    masked
}

/// Whether it may be user and password, and not host and port.
fn is_half(authority: &str) -> bool {
    let port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    !authority.starts_with('[') && authority.rsplit_once(':').is_some_and(|(_, rest)| !port(rest))
}

/// `password=secret` becomes `password=***`, whatever its case.
fn mask_words(text: &str) -> String {
    const NAMES: [&str; 8] = ["password", "passwd", "pwd", "secret", "token", "api_key", "apikey", "api-key"];
    let lower = text.to_ascii_lowercase();
    let mut masked = String::with_capacity(text.len());
    let mut copied = 0;
    for (at, _) in text.match_indices('=') {
        if at < copied || !lower.get(..at).is_some_and(|name| NAMES.iter().any(|secret| name.ends_with(secret))) {
            continue;
        }
        let value = text.get(at + 1..).unwrap_or_default();
        let end = value.find(|c: char| c.is_whitespace() || "&;,\"')]}".contains(c)).unwrap_or(value.len());
        if end > 0 {
            masked.push_str(text.get(copied..=at).unwrap_or_default());
            masked.push_str(MASK);
            copied = at + 1 + end;
        }
    }
    masked.push_str(text.get(copied..).unwrap_or_default());
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_text_stays() {
        assert_eq!(clean("the carrier does not answer", 1024), "the carrier does not answer");
        assert_eq!(clean("a=b, see https://example.org/x?y=z", 1024), "a=b, see https://example.org/x?y=z");
        assert_eq!(clean("", 1024), "");
    }

    #[test]
    fn stack_traces_go() {
        let anyhow = "no such account\n\nCaused by:\n    timeout\n\nStack backtrace:\n   0: std::backtrace\n   1: main";
        assert_eq!(clean(anyhow, 1024), "no such account\n\nCaused by:\n    timeout");
        assert_eq!(clean("stack backtrace: 0: x", 1024), "");
    }

    #[test]
    fn credentials_go() {
        assert_eq!(
            clean("cannot reach postgres://ada:s3cret@db.example:5432/x and redis://:pw@r", 1024),
            "cannot reach postgres://***@db.example:5432/x and redis://***@r"
        );
        assert_eq!(clean("mysql://u:a@b@host", 1024), "mysql://***@host");
        assert_eq!(clean("postgres://ada:s3cr", 1024), "postgres://***");
        assert_eq!(clean("no answer from redis://r:6379", 1024), "no answer from redis://r:6379");
        assert_eq!(clean("no answer from redis://[::1]", 1024), "no answer from redis://[::1]");
        assert_eq!(clean("host=db password=s3cret user=ada", 1024), "host=db password=*** user=ada");
        assert_eq!(clean("?Token=abc&x=1;client_secret=def", 1024), "?Token=***&x=1;client_secret=***");
        assert_eq!(clean("password= (empty)", 1024), "password= (empty)");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        for cap in 0..40 {
            let cut = clean(&"ä".repeat(100), cap);
            assert!(cut.len() <= cap, "{cap}: {}", cut.len());
            assert_eq!(cut.ends_with('…'), cap >= 3, "{cap}");
        }
        assert_eq!(clean(&"x".repeat(1024), 1024).len(), 1024);
    }

    #[test]
    fn control_characters_become_spaces() {
        assert_eq!(clean("a\0b\u{1b}[31mc\r\nd\te", 1024), "a b [31mc \nd\te");
    }
}
