//! What a session begins with: the router's own settings, and before them those of
//! its role on that server (`ALTER ROLE … SET`), which Postgres applies by itself
//! only to roles that log in. As start-up options they are the session's own: what
//! is changed by a request goes back to them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A JSON array of the current role's settings, `name=value`, those of this database
/// behind those of all; none where it has none. What only a superuser may set is
/// left out: it would be refused.
pub(super) const SETTINGS: &str =
    "select pg_catalog.json_agg(c.setting order by s.setdatabase)::text
    from pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) c (setting)
    where s.setrole = (select r.oid from pg_catalog.pg_roles r where r.rolname = current_user)
      and s.setdatabase in (0, (select d.oid from pg_catalog.pg_database d
        where d.datname = pg_catalog.current_database()))
      and not exists (select from pg_catalog.pg_settings p where p.context <> 'user'
        and pg_catalog.lower(p.name) = pg_catalog.lower(pg_catalog.split_part(c.setting, '=', 1)))";

/// What the guard, or the protocol as it is spoken here, rests on.
const KEPT_OUT: [&str; 8] = [
    "client_encoding",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "role",
    "row_security",
    "search_path",
    "session_authorization",
    "standard_conforming_strings",
];
const KEPT_OUT_PREFIXES: [&str; 3] = ["request.", "response.", "ringfence."];

/// Settings that were refused are tried again after so long: what they need may have
/// come to the server meanwhile.
const AGAIN: Duration = Duration::from_secs(60);

/// A role's settings as they were last seen, as start-up options.
#[derive(Default)]
pub(super) struct RoleSettings(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    options: String,
    /// Those that no session can begin with, and since when that is known.
    refused: Option<(String, Instant)>,
}

impl RoleSettings {
    /// What the next session begins with.
    pub(super) fn seen(&self) -> String {
        self.lock().options.clone()
    }

    /// A session began with them.
    pub(super) fn see(&self, options: String) {
        *self.lock() = Seen {
            options,
            refused: None,
        };
    }

    /// None can: sessions do without, and don't try until they are others.
    pub(super) fn refuse(&self, options: String) {
        *self.lock() = Seen {
            options: String::new(),
            refused: Some((options, Instant::now())),
        };
    }

    pub(super) fn is_refused(&self, options: &str) -> bool {
        let seen = self.lock();
        let refused = seen.refused.as_ref();
        refused.is_some_and(|(refused, since)| refused == options && since.elapsed() < AGAIN)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What [`SETTINGS`] said, as start-up options.
pub(super) fn options(said: Option<&str>) -> String {
    let settings = said.and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
    let settings = settings.unwrap_or_default();
    let pairs = settings.iter().filter_map(|one| one.split_once('='));
    let own = pairs.filter(|(name, _)| {
        let name = name.to_ascii_lowercase();
        let prefixed = KEPT_OUT_PREFIXES.iter().any(|one| name.starts_with(one));
        !prefixed && !KEPT_OUT.contains(&&*name)
    });
    own.map(|(name, value)| option(name, value)).collect()
}

/// One start-up option, with a blank behind it.
pub(crate) fn option(name: &str, value: &str) -> String {
    format!("-c {}={} ", escaped(name), escaped(value))
}

/// As the protocol asks: a backslash before each backslash and blank.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\\' || c == '\u{b}' || c.is_ascii_whitespace() {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_not_tried_until_it_is_something_else() {
        let settings = RoleSettings::default();
        settings.see("-c a=1 ".into());
        assert!(!settings.is_refused("-c a=1 "));
        settings.refuse("-c a=x ".into());
        assert_eq!(settings.seen(), "");
        assert!(settings.is_refused("-c a=x ") && !settings.is_refused("-c a=2 "));
        settings.see("-c a=2 ".into());
        assert_eq!(settings.seen(), "-c a=2 ");
        assert!(!settings.is_refused("-c a=x "));
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(option("role", "a b\\c"), "-c role=a\\ b\\\\c ");
    }

    #[test]
    fn a_roles_settings_become_options_but_for_what_the_guard_rests_on() {
        let said = r#"["statement_timeout=8s", "app.note=a b\\c=d\n", "Row_Security=off",
            "ringfence.tenant_id=x", "search_path=evil", "TimeZone=Europe/Oslo"]"#;
        assert_eq!(
            options(Some(said)),
            "-c statement_timeout=8s -c app.note=a\\ b\\\\c=d\\\n -c TimeZone=Europe/Oslo "
        );
        assert_eq!(options(None), "");
    }
}
