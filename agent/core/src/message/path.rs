//! One way to write a path.

use std::borrow::Cow;

/// What happens with a way of writing that servers read differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PathAction {
    /// It stays, and is matched as it is.
    #[default]
    Keep,
    /// It is read as most servers read it, before matching, and forwarded so.
    Normalize,
    /// The request is answered 400.
    Reject,
}

impl PathAction {
    /// As written in a `WeftGatewayConfig`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "Keep",
            Self::Normalize => "Normalize",
            Self::Reject => "Reject",
        }
    }

    /// From what is written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Keep, Self::Normalize, Self::Reject].into_iter().find(|a| a.as_str() == text)
    }
}

/// What a Gateway does with paths that servers read differently: `paths` of a `WeftGatewayConfig`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PathRules {
    /// `//`: normalized to `/`.
    pub repeated_slashes: PathAction,
    /// `%2F`: normalized to `/`.
    pub escaped_slashes: PathAction,
    /// `\` and `%5C`: normalized to `/`.
    pub backslashes: PathAction,
    /// `;` and what follows it in a segment (RFC 3986 §3.3): normalized to nothing.
    pub parameters: PathAction,
}

impl PathRules {
    /// Whether nothing is done beyond what every path that is matched undergoes.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The Gateway wants no such path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Gateway refuses paths with {0}")]
pub struct UnwantedPath(&'static str);

/// Writes a path in the one way in which it is matched and forwarded (RFC 3986 §6.2.2): unreserved characters are decoded,
/// other percent-encodings have capital digits, `.` and `..` are resolved (above the root there is the root), and `rules`
/// are followed. A percent sign without two digits becomes `%25`, or decoding its neighbours could make it a third thing.
///
/// Whatever a server decodes of the result, it comes to no other path than the one that was matched; normalizing it again
/// changes nothing. Allocates only if something changes. What does not begin with a slash (`*`) stays as it is.
///
/// # Errors
/// [`UnwantedPath`], where a rule says so.
pub fn normal_path<'p>(path: &'p str, rules: &PathRules) -> Result<Cow<'p, str>, UnwantedPath> {
    if is_plain(path.as_bytes(), rules.is_default()) || !path.starts_with('/') {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path, rules)?;
    let normal = resolve(&decoded, rules)?;
    Ok(if normal == path { Cow::Borrowed(path) } else { Cow::Owned(normal) })
}

/// Whether nothing in it could change: one look at each byte.
fn is_plain(path: &[u8], by_default: bool) -> bool {
    let mut before = 0;
    for byte in path {
        let plain = match *byte {
            b'%' => false,
            b'.' => before != b'/',
            b'/' => by_default || before != b'/',
            b'\\' | b';' => by_default,
            _ => true,
        };
        if !plain {
            return false;
        }
        before = *byte;
    }
    true
}

/// Percent-encodings and backslashes.
fn decode(path: &str, rules: &PathRules) -> Result<String, UnwantedPath> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(path.len());
    let slash_or = |action, what, kept: &[u8], out: &mut Vec<u8>| {
        match action {
            PathAction::Keep => out.extend_from_slice(kept),
            PathAction::Normalize => out.push(b'/'),
            PathAction::Reject => return Err(UnwantedPath(what)),
        }
        Ok(())
    };
    let mut rest = path.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match *byte {
            b'%' => {
                let Some((value, after)) = encoded(tail) else {
                    out.extend_from_slice(b"%25");
                    continue;
                };
                rest = after;
                match value {
                    b'/' => slash_or(rules.escaped_slashes, "an encoded slash", b"%2F", &mut out)?,
                    b'\\' => slash_or(rules.backslashes, "a backslash", b"%5C", &mut out)?,
                    value if is_unreserved(value) => out.push(value),
                    value => {
                        out.extend([b'%', HEX[usize::from(value >> 4)], HEX[usize::from(value & 15)]]);
                    }
                }
            }
            b'\\' => slash_or(rules.backslashes, "a backslash", b"\\", &mut out)?,
            byte => out.push(byte),
        }
    }
    // Only ASCII was put in or taken out.
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// The byte that two hexadecimal digits stand for, and what follows them.
fn encoded(digits: &[u8]) -> Option<(u8, &[u8])> {
    let [high, low, rest @ ..] = digits else { return None };
    let hex = |digit: u8| char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some((hex(*high)? << 4 | hex(*low)?, rest))
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Segments: parameters, dots, empty ones.
fn resolve(path: &str, rules: &PathRules) -> Result<String, UnwantedPath> {
    let mut out: Vec<&str> = Vec::new();
    let mut segments = path[1..].split('/').peekable();
    while let Some(mut segment) = segments.next() {
        let last = segments.peek().is_none();
        if let Some((name, _)) = segment.split_once(';') {
            match rules.parameters {
                PathAction::Keep => {}
                PathAction::Normalize => segment = name,
                PathAction::Reject => return Err(UnwantedPath("a semicolon")),
            }
        }
        if segment.is_empty() && !last {
            match rules.repeated_slashes {
                PathAction::Keep => {}
                PathAction::Normalize => continue,
                PathAction::Reject => return Err(UnwantedPath("repeated slashes")),
            }
        }
        match segment {
            "." => {}
            ".." => drop(out.pop()),
            segment => out.push(segment),
        }
        // `/a/.` and `/a/b/..` end in a slash.
        if last && matches!(segment, "." | "..") {
            out.push("");
        }
    }
    Ok(format!("/{}", out.join("/")))
}
