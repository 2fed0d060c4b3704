//! What the tester knows about the cluster: the lines of
//! `.ringfence/local.env`, or what the command line says instead.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where `./ops/up` writes what is needed to reach the cluster.
pub const DEFAULT_FILE: &str = ".ringfence/local.env";
/// The data API's path on a router.
const ROUTER_PATH: &str = "/rest/v1";

/// Addresses and keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Where requests go, one a router; base URLs with their path.
    pub targets: Vec<String>,
    /// The admin API and its token.
    pub admin: Option<Admin>,
    /// Keys by tenant's slug.
    pub keys: BTreeMap<String, String>,
    /// Connection strings of each shard's nodes; which is primary is seen by
    /// asking them.
    pub shards: BTreeMap<String, Vec<String>>,
}

/// How to reach the admin API.
#[derive(Clone, PartialEq, Eq)]
pub struct Admin {
    /// Its base URL.
    pub url: String,
    /// The operator's token.
    pub token: String,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Environment {
    /// What the command line asks for. With `urls` alone nothing else is
    /// assumed: any service can be driven, without keys or with those given.
    ///
    /// # Errors
    /// When a named file cannot be read, or nothing says where to send
    /// requests.
    pub fn from_options(
        file: Option<&Path>,
        urls: &[String],
        keys: &[(String, String)],
    ) -> Result<Self> {
        let path = match (file, urls.is_empty()) {
            (Some(file), _) => Some(file.to_owned()),
            (None, true) => Some(PathBuf::from(DEFAULT_FILE)),
            (None, false) => None,
        };
        let mut environment = match path {
            None => Environment::default(),
            Some(path) => Self::parse(&std::fs::read_to_string(&path).map_err(|source| {
                Error::Environment(format!(
                    "{}: {source}; start the cluster with ./ops/up, or say --url",
                    path.display()
                ))
            })?),
        };
        if !urls.is_empty() {
            environment.targets = urls
                .iter()
                .map(|url| url.trim_end_matches('/').to_owned())
                .collect();
        }
        environment.keys.extend(keys.iter().cloned());
        if environment.targets.is_empty() {
            return Err(Error::Environment(
                "the environment file has no RINGFENCE_URL; say --url".to_owned(),
            ));
        }
        Ok(environment)
    }

    /// Reads lines `KEY=value`; other lines are somebody else's.
    pub fn parse(text: &str) -> Self {
        let values: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.trim().trim_start_matches("export ").split_once('='))
            .map(|(name, value)| (name.trim(), unquote(value.trim())))
            .collect();
        let suffixes = |prefix: &'static str| {
            values.iter().filter_map(move |(name, value)| {
                name.strip_prefix(prefix)
                    .map(|rest| (rest.to_lowercase().replace('_', "-"), (*value).to_owned()))
            })
        };
        let routers = values
            .get("RINGFENCE_ROUTER_URLS")
            .or(values.get("RINGFENCE_URL"));
        Environment {
            targets: routers
                .map(|urls| {
                    urls.split(',')
                        .map(str::trim)
                        .filter(|url| !url.is_empty())
                        .map(data_api)
                        .collect()
                })
                .unwrap_or_default(),
            admin: values.get("RINGFENCE_ADMIN_URL").map(|url| Admin {
                url: url.trim_end_matches('/').to_owned(),
                token: values
                    .get("RINGFENCE_ADMIN_TOKEN")
                    .copied()
                    .unwrap_or_default()
                    .to_owned(),
            }),
            keys: suffixes("RINGFENCE_KEY_").collect(),
            shards: suffixes("RINGFENCE_SHARD_").fold(
                BTreeMap::new(),
                |mut shards, (name, dsn)| {
                    if let Some((shard, _node)) = name.rsplit_once('-') {
                        shards
                            .entry(shard.to_owned())
                            .or_insert_with(Vec::new)
                            .push(dsn);
                    }
                    shards
                },
            ),
        }
    }
}

/// A router's address with the data API's path, unless it has a path.
fn data_api(url: &str) -> String {
    let url = url.trim_end_matches('/');
    let has_path = url
        .split_once("://")
        .is_some_and(|(_, rest)| rest.contains('/'));
    if has_path {
        url.to_owned()
    } else {
        format!("{url}{ROUTER_PATH}")
    }
}

fn unquote(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = value
            .strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote))
        {
            return inner;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_cluster_writes() {
        let environment = Environment::parse(
            "# written by ./ops/up\nRINGFENCE_URL=http://127.0.0.1:7400\n\
             RINGFENCE_ROUTER_URLS=http://127.0.0.1:7400,http://127.0.0.1:7401\n\
             RINGFENCE_ADMIN_URL=http://127.0.0.1:7600\nRINGFENCE_ADMIN_TOKEN='t=1'\n\
             RINGFENCE_KEY_ACME=rf_a\nRINGFENCE_KEY_BIG_CO=rf_b\n\
             RINGFENCE_SHARD_S1_PRIMARY=\"host=127.0.0.1 port=7710\"\nRINGFENCE_SHARD_S1_REPLICA1=x\n",
        );
        assert_eq!(
            environment.targets,
            [
                "http://127.0.0.1:7400/rest/v1",
                "http://127.0.0.1:7401/rest/v1"
            ]
        );
        assert_eq!(
            environment.admin,
            Some(Admin {
                url: "http://127.0.0.1:7600".to_owned(),
                token: "t=1".to_owned()
            })
        );
        let keys: Vec<(&str, &str)> = environment
            .keys
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(keys, [("acme", "rf_a"), ("big-co", "rf_b")]);
        let shards: Vec<(&str, usize)> = environment
            .shards
            .iter()
            .map(|(shard, nodes)| (shard.as_str(), nodes.len()))
            .collect();
        assert_eq!(shards, [("s1", 2)]);
    }

    #[test]
    fn a_url_alone_assumes_nothing_else() {
        let urls = ["http://localhost:3000/".to_owned()];
        let environment = Environment::from_options(None, &urls, &[]).unwrap();
        assert_eq!(
            environment,
            Environment {
                targets: vec!["http://localhost:3000".to_owned()],
                ..Default::default()
            }
        );
        let missing =
            Environment::from_options(Some(Path::new("no/such.env")), &[], &[]).unwrap_err();
        assert!(missing.to_string().contains("./ops/up"), "{missing}");
    }
}
