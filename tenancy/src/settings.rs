//! How services read their configuration: a TOML file, then the environment,
//! which goes before. Unknown keys are refused in both.
//!
//! Every key of the file has a variable: `RINGFENCE__`, then the key in
//! capitals, its parts joined by two underscores. `shards.pool_size_max` is
//! `RINGFENCE__SHARDS__POOL_SIZE_MAX`. Values are written as in TOML; text
//! needs no quotes unless it looks like something else.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Serialized};
use serde::de::DeserializeOwned;

/// What variables that stand for a key begin with.
const PREFIX: &str = "RINGFENCE__";

/// Why settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read.
    #[error("can't read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key is unknown, or its value not what it must be.
    #[error("the configuration is not valid: {0}")]
    Invalid(String),
}

/// Reads the file, if one is given, and the environment.
///
/// # Errors
/// The file can't be read; or a key or value is wrong, with where it stands.
pub fn load<T: DeserializeOwned>(file: Option<&Path>) -> Result<T, SettingsError> {
    let mut all = Figment::new();
    let mut place = String::new();
    if let Some(path) = file {
        // Read here, since a missing file must not count as an empty one.
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
            path: path.to_owned(),
            source,
        })?;
        place = format!("{}: ", path.display());
        let table: toml::Table = toml::from_str(&text)
            .map_err(|error| SettingsError::Invalid(format!("{place}{error}")))?;
        all = all.merge(Serialized::globals(table));
    }
    all.merge(Env::prefixed(PREFIX).split("__"))
        .extract()
        .map_err(|error| SettingsError::Invalid(said(&error, &place)))
}

/// What is wrong, with the file's name where it is the file's.
fn said(error: &figment::Error, place: &str) -> String {
    let from_file = error
        .metadata
        .as_ref()
        .is_none_or(|metadata| !metadata.name.contains(PREFIX));
    match from_file {
        true => format!("{place}{error}"),
        false => error.to_string(),
    }
}

#[cfg(test)]
#[allow(
    clippy::result_large_err,
    reason = "the harness of figment's own errors"
)]
mod tests {
    use figment::Jail;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        name: String,
        shards: Shards,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Shards {
        pool_size_max: usize,
        schemas: Vec<String>,
        file: Option<PathBuf>,
    }

    impl Default for Settings {
        fn default() -> Self {
            Self {
                name: "router".into(),
                shards: Shards::default(),
            }
        }
    }

    impl Default for Shards {
        fn default() -> Self {
            Self {
                pool_size_max: 20,
                schemas: Vec::new(),
                file: None,
            }
        }
    }

    fn refused(file: Option<&Path>) -> String {
        load::<Settings>(file).unwrap_err().to_string()
    }

    #[test]
    fn the_environment_goes_before_the_file_and_the_file_before_defaults() {
        Jail::expect_with(|jail| {
            assert_eq!(load::<Settings>(None).unwrap(), Settings::default());
            jail.create_file("r.toml", "name = 'a'\n[shards]\npool_size_max = 5\n")?;
            jail.set_env("RINGFENCE__SHARDS__POOL_SIZE_MAX", "7");
            jail.set_env("RINGFENCE__SHARDS__SCHEMAS", "[\"public\", \"api\"]");
            jail.set_env("RINGFENCE__SHARDS__FILE", "/run/secrets/router");
            // A secret's own variable is no key.
            jail.set_env("RINGFENCE_ROUTER_PASSWORD", "secret");
            let read = load::<Settings>(Some(Path::new("r.toml"))).unwrap();
            assert_eq!(read.name, "a");
            assert_eq!(read.shards.pool_size_max, 7);
            assert_eq!(read.shards.schemas, ["public", "api"]);
            assert_eq!(read.shards.file, Some("/run/secrets/router".into()));
            Ok(())
        });
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        Jail::expect_with(|jail| {
            let path = Some(Path::new("r.toml"));
            assert!(refused(path).contains("can't read r.toml"));
            jail.create_file("r.toml", "[shards]\npool_sise_max = 5\n")?;
            let error = refused(path);
            assert!(
                error.contains("pool_sise_max") && error.contains("r.toml"),
                "{error}"
            );
            jail.create_file("r.toml", "[shards\n")?;
            assert!(refused(path).contains("r.toml: TOML parse error at line 1"));
            jail.set_env("RINGFENCE__SHARDS__POOL_SIZE_MAX", "many");
            let error = refused(None);
            assert!(
                error.contains("POOL_SIZE_MAX") && error.contains("many"),
                "{error}"
            );
            jail.set_env("RINGFENCE__SHARDS__POOL_SIZE_MAX", "7");
            jail.set_env("RINGFENCE__SHRDS__POOL_SIZE_MAX", "7");
            assert!(refused(None).to_lowercase().contains("shrds"));
            Ok(())
        });
    }
}
