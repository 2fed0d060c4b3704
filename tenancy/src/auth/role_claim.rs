//! Where a token says its role: `.role`, `.user.roles[0]`, `."https://a.b/role"`,
//! as PostgREST's `jwt-role-claim-key`.

use std::str::FromStr;

use serde_json::{Map, Value};

/// Steps into a token's claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleClaim {
    first: String,
    further: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// The path can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no path to a claim: write it as .role, .user.roles[0] or .\"https://a.b/role\""
)]
pub struct RoleClaimError(String);

impl Default for RoleClaim {
    fn default() -> Self {
        Self {
            first: "role".into(),
            further: Vec::new(),
        }
    }
}

impl RoleClaim {
    /// The value there; none where it is missing.
    pub(super) fn of<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let first = claims.get(&self.first)?;
        self.further
            .iter()
            .try_fold(first, |value, step| match step {
                Step::Key(key) => value.get(key),
                Step::Index(index) => value.get(index),
            })
    }
}

impl FromStr for RoleClaim {
    type Err = RoleClaimError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || RoleClaimError(text.to_owned());
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, behind) = step(rest).ok_or_else(bad)?;
            steps.push(step);
            rest = behind;
        }
        let mut steps = steps.into_iter();
        match steps.next() {
            Some(Step::Key(first)) => Ok(Self {
                first,
                further: steps.collect(),
            }),
            Some(Step::Index(_)) | None => Err(bad()),
        }
    }
}

/// The first step, and what is behind it.
fn step(text: &str) -> Option<(Step, &str)> {
    if let Some(text) = text.strip_prefix('[') {
        let (index, rest) = text.split_once(']')?;
        return Some((Step::Index(index.parse().ok()?), rest));
    }
    let text = text.strip_prefix('.')?;
    let (key, rest) = match text.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"')?,
        None => text.split_at(text.find(['.', '[', '"']).unwrap_or(text.len())),
    };
    (!key.is_empty()).then(|| (Step::Key(key.to_owned()), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_into_the_claims() {
        let claims = serde_json::json!({
            "role": "a", "user": { "roles": ["b", "c"] }, "https://a.b/role": "d", "n": null,
        });
        let claims = claims.as_object().unwrap();
        let at = |path: &str| {
            let found = path.parse::<RoleClaim>().unwrap().of(claims).cloned();
            found.and_then(|value| value.as_str().map(str::to_owned))
        };
        for (path, role) in [
            (".role", Some("a")),
            ("$.role", Some("a")),
            (".user.roles[1]", Some("c")),
            (".\"https://a.b/role\"", Some("d")),
            (".user.roles[2]", None),
            (".role.deeper", None),
            (".nothing", None),
        ] {
            assert_eq!(at(path).as_deref(), role, "{path}");
        }
        assert_eq!(".role".parse(), Ok(RoleClaim::default()));
        for bad in [
            "", "$", "role", ".", "[0]", ".a[x]", ".a[1", ".a..b", ".\"a",
        ] {
            assert!(bad.parse::<RoleClaim>().is_err(), "{bad}");
        }
    }
}
