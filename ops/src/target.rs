//! Which admin API a command talks to.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result, io};

/// What `ringfence local` writes for programs, below the checkout.
const LOCAL_ENV: &str = ".ringfence/local.env";

/// What the command line or the environment says.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Address of the admin API.
    pub url: Option<String>,
    /// Its bearer token.
    pub token: Option<String>,
}

/// An admin API, and the right to use it.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Base address, without `/admin/v1`.
    pub url: String,
    /// Bearer token.
    pub token: String,
}

/// Completes what was given from the local cluster's `local.env`, looked for
/// from `folder` upwards.
///
/// Its token goes only to its own address: whoever names another server must
/// name that one's token too.
///
/// # Errors
/// Where address or token stay unknown, or the file can't be read.
pub fn find(given: Given, folder: &Path) -> Result<Target> {
    let local = || match local_env(folder) {
        Some(path) => read(&path),
        None => Ok(Given::default()),
    };
    let (url, token) = match (given.url, given.token) {
        (Some(url), Some(token)) => (Some(url), Some(token)),
        (Some(url), None) => {
            let local = local()?;
            let same = local.url.as_deref().map(base) == Some(base(&url));
            (Some(url), local.token.filter(|_| same))
        }
        (None, token) => {
            let local = local()?;
            (local.url, token.or(local.token))
        }
    };
    Ok(Target {
        url: url.ok_or_else(|| unknown("address", "--url", "RINGFENCE_ADMIN_URL"))?,
        token: token.ok_or_else(|| unknown("token", "--token", "RINGFENCE_ADMIN_TOKEN"))?,
    })
}

/// The token in a file.
///
/// # Errors
/// The file can't be read.
pub fn read_token(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(io(format!("read {}", path.display())))?;
    Ok(text.trim_end().to_owned())
}

/// The folder that the search for a local cluster starts from.
///
/// # Errors
/// Where the current folder is gone, or may not be read.
pub fn current_folder() -> Result<PathBuf> {
    std::env::current_dir().map_err(io("find the current folder"))
}

fn local_env(folder: &Path) -> Option<PathBuf> {
    folder
        .ancestors()
        .map(|ancestor| ancestor.join(LOCAL_ENV))
        .find(|path| path.is_file())
}

fn read(path: &Path) -> Result<Given> {
    let text = std::fs::read_to_string(path).map_err(io(format!("read {}", path.display())))?;
    let value = |key: &str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        lines
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value.to_owned())
            .next_back()
    };
    Ok(Given {
        url: value("RINGFENCE_ADMIN_URL"),
        token: value("RINGFENCE_ADMIN_TOKEN"),
    })
}

fn base(url: &str) -> &str {
    url.trim_end_matches('/')
}

fn unknown(what: &str, option: &str, variable: &str) -> Error {
    Error::Usage(format!(
        "the admin API's {what} is not known: there is no {LOCAL_ENV} here or above\n\
         hint: give {option}, set {variable}, or start a local cluster with ./ops/up"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn with_env(text: &str) -> Self {
            let root = std::env::temp_dir().join(format!("rf-{}", uuid::Uuid::new_v4()));
            std::fs::create_dir_all(root.join(".ringfence")).unwrap();
            std::fs::create_dir_all(root.join("a/b")).unwrap();
            std::fs::write(root.join(LOCAL_ENV), text).unwrap();
            Self(root)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const ENV: &str = "RINGFENCE_ADMIN_URL=http://127.0.0.1:7600\nRINGFENCE_ADMIN_TOKEN=local\n";

    fn given(url: Option<&str>, token: Option<&str>) -> Given {
        Given {
            url: url.map(Into::into),
            token: token.map(Into::into),
        }
    }

    fn pair(target: Target) -> (String, String) {
        (target.url, target.token)
    }

    #[test]
    fn a_local_cluster_is_found_from_below() {
        let folder = Folder::with_env(ENV);
        let found = find(Given::default(), &folder.0.join("a/b")).unwrap();
        assert_eq!(
            pair(found),
            ("http://127.0.0.1:7600".into(), "local".into())
        );
    }

    #[test]
    fn what_is_given_comes_first() {
        let folder = Folder::with_env(ENV);
        let found = find(given(Some("http://other"), Some("other")), &folder.0).unwrap();
        assert_eq!(pair(found), ("http://other".into(), "other".into()));
        let found = find(given(None, Some("mine")), &folder.0).unwrap();
        assert_eq!(pair(found), ("http://127.0.0.1:7600".into(), "mine".into()));
    }

    #[test]
    fn the_local_token_goes_to_no_other_server() {
        let folder = Folder::with_env(ENV);
        let refused = find(given(Some("http://other"), None), &folder.0);
        assert!(matches!(refused, Err(Error::Usage(text)) if text.contains("token")));
        let same = find(given(Some("http://127.0.0.1:7600/"), None), &folder.0).unwrap();
        assert_eq!(same.token, "local");
    }

    #[test]
    fn without_any_the_way_out_is_told() {
        let folder = Folder::with_env("");
        let refused = find(Given::default(), &folder.0);
        assert!(matches!(refused, Err(Error::Usage(text)) if text.contains("./ops/up")));
    }
}
