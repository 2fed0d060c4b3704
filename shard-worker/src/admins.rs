//! Who may use the admin API: bearer tokens, each with the name of who has it,
//! which is what the audit log calls them.

use aws_lc_rs::constant_time::verify_slices_are_equal;

/// Longest name.
const NAME_MAX: usize = 63;

/// Names with their tokens.
pub struct Admins(Vec<(String, String)>);

/// Why tokens can't be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum AdminsError {
    /// A name that would not be told apart in the audit log.
    #[error(
        "an admin's name must be of 1 to {NAME_MAX} letters, digits, dots, dashes, underscores and @: {0:?} is not"
    )]
    Name(String),
    /// Anybody could show it.
    #[error("the admin token of {0} is empty")]
    Empty(String),
    /// Nobody could tell whose it is.
    #[error("{0} and {1} have the same admin token")]
    Same(String, String),
    /// A name has two tokens.
    #[error("there are two admin tokens of {0}")]
    Twice(String),
}

impl Admins {
    /// Tokens by name.
    ///
    /// # Errors
    /// Where a caller could not be told by its token.
    pub fn new(tokens: Vec<(String, String)>) -> Result<Self, AdminsError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '@');
        for (place, (name, token)) in tokens.iter().enumerate() {
            if !(1..=NAME_MAX).contains(&name.len()) || !name.chars().all(fits) {
                return Err(AdminsError::Name(name.clone()));
            }
            if token.is_empty() {
                return Err(AdminsError::Empty(name.clone()));
            }
            for (other, known) in tokens.iter().take(place) {
                if other == name {
                    return Err(AdminsError::Twice(name.clone()));
                }
                if known == token {
                    return Err(AdminsError::Same(other.clone(), name.clone()));
                }
            }
        }
        Ok(Self(tokens))
    }

    /// Whose token it is, if it is one.
    pub fn name_of(&self, token: &[u8]) -> Option<&str> {
        let mut tokens = self.0.iter();
        let found =
            tokens.find(|(_, known)| verify_slices_are_equal(token, known.as_bytes()).is_ok());
        found.map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tokens: &[(&str, &str)]) -> Result<Admins, AdminsError> {
        let owned = |(name, token): &(&str, &str)| ((*name).to_owned(), (*token).to_owned());
        Admins::new(tokens.iter().map(owned).collect())
    }

    #[test]
    fn a_token_tells_whose_it_is() {
        let admins = of(&[("admin", "one"), ("alice@crm", "two")]).unwrap();
        assert_eq!(admins.name_of(b"two"), Some("alice@crm"));
        for stranger in ["", "tw", "two2", "alice@crm"] {
            assert_eq!(admins.name_of(stranger.as_bytes()), None);
        }
    }

    #[test]
    fn tokens_that_would_not_tell_are_refused() {
        let refused = |tokens: &[(&str, &str)]| of(tokens).err().unwrap();
        let name = AdminsError::Name("a (b)".into());
        assert_eq!(refused(&[("a (b)", "one")]), name);
        assert_eq!(refused(&[("a", "")]), AdminsError::Empty("a".into()));
        let same = AdminsError::Same("a".into(), "b".into());
        assert_eq!(refused(&[("a", "one"), ("b", "one")]), same);
        let twice = AdminsError::Twice("a".into());
        assert_eq!(refused(&[("a", "one"), ("a", "two")]), twice);
    }
}
