//! How services read their configuration: a TOML file, then the environment,
//! which goes before. Unknown keys are refused in both.
//!
//! Every key of the file has a variable: `RINGFENCE__`, then the key in
//! capitals, its parts joined by two underscores. `shards.pool_size_max` is
//! `RINGFENCE__SHARDS__POOL_SIZE_MAX`. Values are written as in TOML; text
//! needs no quotes unless it looks like something else.

use std::path::{Path, PathBuf};

use figment::providers::{Env, Serialized};
use figment::{Figment, Provider};
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
    read(file, Env::prefixed(PREFIX).split("__"))
}

fn read<T: DeserializeOwned>(
    file: Option<&Path>,
    environment: impl Provider,
) -> Result<T, SettingsError> {
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
        all = all.merge(Serialized::defaults(table));
    }
    all.merge(environment)
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

    /// A file that goes with the test.
    struct File(PathBuf);

    impl File {
        fn new(text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("rf-{}.toml", uuid::Uuid::new_v4()));
            std::fs::write(&path, text).unwrap();
            Self(path)
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn given(shards: serde_json::Value) -> Serialized<serde_json::Value> {
        Serialized::defaults(serde_json::json!({ "shards": shards }))
    }

    fn refused(file: &Path) -> String {
        let nothing = given(serde_json::json!({}));
        read::<Settings>(Some(file), nothing)
            .unwrap_err()
            .to_string()
    }

    // Real variables are tried on the services' binaries (ops/tests/production.rs):
    // those of this process belong to all of its tests.
    #[test]
    fn the_environment_goes_before_the_file_and_the_file_before_defaults() {
        let nothing = given(serde_json::json!({}));
        assert_eq!(
            read::<Settings>(None, nothing).unwrap(),
            Settings::default()
        );
        let file = File::new("name = 'a'\n[shards]\npool_size_max = 5\nschemas = ['public']\n");
        let environment = given(serde_json::json!({ "pool_size_max": 7, "file": "/run/x" }));
        let read = read::<Settings>(Some(&file.0), environment).unwrap();
        assert_eq!((&*read.name, read.shards.pool_size_max), ("a", 7));
        assert_eq!(read.shards.schemas, ["public"]);
        assert_eq!(read.shards.file, Some("/run/x".into()));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        assert!(refused(Path::new("/nowhere.toml")).contains("can't read /nowhere.toml"));
        for (text, what) in [
            ("[shards]\npool_sise_max = 5\n", "pool_sise_max"),
            ("[shards]\npool_size_max = 'many'\n", "many"),
            ("[shards\n", "TOML parse error at line 1"),
        ] {
            let file = File::new(text);
            let error = refused(&file.0);
            let place = file.0.display().to_string();
            assert!(error.contains(what) && error.contains(&place), "{error}");
        }
        let wrong = given(serde_json::json!({ "pool_size_max": "many" }));
        let error = read::<Settings>(None, wrong).unwrap_err().to_string();
        assert!(error.contains("many"), "{error}");
    }
}
