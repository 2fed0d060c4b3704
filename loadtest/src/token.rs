//! Canaries: texts that name the tenant, the run and the write that put them
//! into a row. `rfc~<tenant's tag>~<run>~m<number>~` marks an insert of the
//! load, `rfc~<tag>~<run>~r<register>.<version>~` a version of a watched row.
//!
//! They consist of letters, digits, `~` and `.`, so they look the same in
//! JSON, in a URL and in a `like` pattern, and a scan for them is a search for
//! four bytes.

use std::fmt;

use memchr::memmem;

/// What every token begins with.
pub const PREFIX: &str = "rfc~";
/// The length of a tenant's tag.
pub const TAG_LENGTH: usize = 10;

/// A short name of a tenant that is the same in every run, so that a row
/// written by an earlier run is recognised too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag([u8; TAG_LENGTH]);

impl Tag {
    /// The tag of a tenant's slug: 50 bits of its FNV-1a hash.
    pub fn of(slug: &str) -> Self {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in slug.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Tag(base32::<TAG_LENGTH>(hash >> 14))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Tag(bytes.get(..TAG_LENGTH)?.try_into().ok()?))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        // Only ASCII letters and digits are ever put in.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// A short name of a run: different for each.
pub fn run_name() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64);
    // Mixed, so that runs started one after the other differ in every place.
    let mixed =
        (now ^ u64::from(std::process::id()).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    String::from_utf8_lossy(&base32::<8>(mixed >> 24)).into_owned()
}

/// The lowest `5 × N` bits as letters and digits.
fn base32<const N: usize>(mut bits: u64) -> [u8; N] {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut text = [0; N];
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(bits & 31) as usize];
        bits >>= 5;
    }
    text
}

/// Which write a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Write {
    /// The nth insert of the load.
    Mark(u64),
    /// A version of a watched row.
    Register {
        /// The register.
        register: u32,
        /// Its version, from 1.
        version: u32,
    },
}

/// A token found in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The tenant that wrote it.
    pub tag: Tag,
    /// The run that wrote it.
    pub run: String,
    /// The write.
    pub write: Write,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}~{}~", self.tag, self.run)?;
        match self.write {
            Write::Mark(number) => write!(f, "m{number}~"),
            Write::Register { register, version } => write!(f, "r{register}.{version}~"),
        }
    }
}

impl Token {
    /// The token that a text begins with.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX.as_bytes())?;
        let tag = Tag::parse(rest)?;
        let rest = rest.get(TAG_LENGTH..)?.strip_prefix(b"~")?;
        let mut fields = rest.splitn(3, |byte| *byte == b'~');
        let run = std::str::from_utf8(fields.next()?).ok()?.to_owned();
        let write = std::str::from_utf8(fields.next()?).ok()?;
        fields.next()?;
        let write = if let Some(number) = write.strip_prefix('m') {
            Write::Mark(number.parse().ok()?)
        } else {
            let (register, version) = write.strip_prefix('r')?.split_once('.')?;
            Write::Register {
                register: register.parse().ok()?,
                version: version.parse().ok()?,
            }
        };
        Some(Token { tag, run, write })
    }

    /// All tokens in a text, in order.
    pub fn all(text: &[u8]) -> impl Iterator<Item = Token> {
        memmem::find_iter(text, PREFIX).filter_map(|at| Token::parse(&text[at..]))
    }
}

/// The first token in an answer that another tenant wrote. Costs one search
/// for four bytes where there is none.
pub fn foreign(text: &[u8], own: &Tag) -> Option<Token> {
    memmem::find_iter(text, PREFIX)
        .filter(|at| {
            text.get(at + PREFIX.len()..at + PREFIX.len() + TAG_LENGTH) != Some(&own.0[..])
        })
        .find_map(|at| Token::parse(&text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_print_and_parse_alike() {
        for write in [
            Write::Mark(0),
            Write::Mark(u64::MAX),
            Write::Register {
                register: 3,
                version: 17,
            },
        ] {
            let token = Token {
                tag: Tag::of("acme"),
                run: run_name(),
                write,
            };
            let text = format!("[{{\"body\":\"{token} more text\"}}]");
            assert_eq!(Token::all(text.as_bytes()).collect::<Vec<_>>(), [token]);
        }
    }

    #[test]
    fn only_other_tenants_tokens_are_foreign() {
        let own = Tag::of("acme");
        let token = |slug| Token {
            tag: Tag::of(slug),
            run: "r".to_owned(),
            write: Write::Mark(1),
        };
        let clean = format!("{} {} rfc~", token("acme"), token("acme"));
        assert_eq!(foreign(clean.as_bytes(), &own), None);
        let leaky = format!("{clean}{}", token("globex"));
        assert_eq!(foreign(leaky.as_bytes(), &own), Some(token("globex")));
    }

    #[test]
    fn tags_are_stable_and_distinct() {
        assert_eq!(Tag::of("acme").as_str(), Tag::of("acme").to_string());
        let tags: std::collections::HashSet<Tag> = (0..100_000)
            .map(|n| Tag::of(&format!("load-{n}")))
            .collect();
        assert_eq!(tags.len(), 100_000);
    }
}
