//! Whose requests a run sends: tenants with their keys, and how often each is
//! chosen.

use std::collections::BTreeMap;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http::HeaderValue;

use crate::admin::AdminClient;
use crate::environment::{Admin, Environment};
use crate::error::{Error, Result};
use crate::scenario::{self, Spread};
use crate::token::Tag;

/// How many requests to the admin API run at a time.
const SETUP_CONCURRENCY: usize = 16;
/// The only tenant of a service that is driven without keys.
const ANONYMOUS: &str = "anonymous";

/// A tenant to send requests for.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its slug.
    pub slug: String,
    /// Its id, if the admin API said.
    pub id: Option<String>,
    /// Its key; none for a service that is driven without.
    pub key: Option<HeaderValue>,
    /// What its canaries carry.
    pub tag: Tag,
}

/// All tenants of a run.
#[derive(Debug, Clone)]
pub struct Population {
    /// The tenants, the most frequent first where they differ.
    pub tenants: Vec<Tenant>,
    /// The running sum of their shares; the last is 1.
    cumulative: Vec<f64>,
}

impl Population {
    /// Finds or creates the tenants that a scenario asks for.
    ///
    /// # Errors
    /// When the admin API is needed and cannot be used.
    pub async fn gather(wanted: &scenario::Population, environment: &Environment) -> Result<Self> {
        let admin = || {
            environment.admin.as_ref().ok_or_else(|| {
                Error::Environment(
                    "the scenario's tenants need the admin API: no RINGFENCE_ADMIN_URL is known"
                        .to_owned(),
                )
            })
        };
        let tenants = if environment.keys.is_empty() && environment.admin.is_none() {
            vec![tenant(ANONYMOUS.to_owned(), None, None)?]
        } else if let Some(count) = wanted.count {
            create(wanted, count, &environment.keys, admin()?).await?
        } else if let Some(limit) = wanted.list {
            let found = AdminClient::new(admin()?)?.tenants(limit).await?;
            with_keys(found, &environment.keys, Some(admin()?)).await?
        } else {
            let slugs: Vec<String> = if wanted.tenants.is_empty() {
                environment.keys.keys().cloned().collect()
            } else {
                wanted.tenants.clone()
            };
            let named = slugs.into_iter().map(|slug| (slug, None)).collect();
            with_keys(named, &environment.keys, environment.admin.as_ref()).await?
        };
        if tenants.is_empty() {
            return Err(Error::Environment(
                "there is no tenant to send requests for".to_owned(),
            ));
        }
        Ok(Population {
            cumulative: cumulative(wanted, tenants.len()),
            tenants,
        })
    }

    /// Draws a tenant's place.
    pub fn draw(&self, random: &mut fastrand::Rng) -> usize {
        if self.tenants.len() == 1 {
            return 0;
        }
        let at = random.f64();
        self.cumulative
            .partition_point(|share| *share <= at)
            .min(self.tenants.len() - 1)
    }

    /// The place of a tenant by its slug.
    pub fn place(&self, slug: &str) -> Option<usize> {
        self.tenants.iter().position(|tenant| tenant.slug == slug)
    }
}

async fn create(
    wanted: &scenario::Population,
    count: usize,
    keys: &BTreeMap<String, String>,
    admin: &Admin,
) -> Result<Vec<Tenant>> {
    let prefix = wanted.prefix.as_deref().unwrap_or("load");
    let slugs: Vec<(String, Option<&str>)> = (0..count)
        .map(|n| {
            let region = wanted
                .regions
                .get(n.checked_rem(wanted.regions.len()).unwrap_or(0));
            (format!("{prefix}-{n}"), region.map(String::as_str))
        })
        .collect();
    let created = in_parallel(slugs, admin, async |client, (slug, region)| {
        let id = client.create_tenant(&slug, region).await?;
        Ok((slug, id))
    })
    .await?;
    with_keys(created, keys, Some(admin)).await
}

/// Gives each tenant the key that is known, or a new one.
async fn with_keys(
    tenants: Vec<(String, Option<String>)>,
    keys: &BTreeMap<String, String>,
    admin: Option<&Admin>,
) -> Result<Vec<Tenant>> {
    let Some(admin) = admin else {
        return tenants
            .into_iter()
            .map(|(slug, id)| {
                let key = keys.get(&slug).ok_or_else(|| {
                    Error::Environment(format!(
                        "no key of tenant {slug:?} is known, and no admin API to make one"
                    ))
                })?;
                tenant(slug, id, Some(key))
            })
            .collect();
    };
    in_parallel(tenants, admin, async |client, (slug, id)| {
        let key = match keys.get(&slug) {
            Some(key) => key.clone(),
            None => client.create_key(&slug).await?,
        };
        tenant(slug, id, Some(&key))
    })
    .await
}

/// Does `work` for every item over a bounded number of connections; results
/// keep the items' order.
async fn in_parallel<I, O>(
    items: Vec<I>,
    admin: &Admin,
    work: impl AsyncFn(&mut AdminClient, I) -> Result<O>,
) -> Result<Vec<O>> {
    let workers = SETUP_CONCURRENCY.min(items.len().max(1));
    let mut shares: Vec<Vec<(usize, I)>> = (0..workers).map(|_| Vec::new()).collect();
    for (place, item) in items.into_iter().enumerate() {
        shares[place % workers].push((place, item));
    }
    let work = &work;
    let mut done: Vec<(usize, O)> = stream::iter(shares)
        .map(|share| async move {
            let mut client = AdminClient::new(admin)?;
            let mut results = Vec::with_capacity(share.len());
            for (place, item) in share {
                results.push((place, work(&mut client, item).await?));
            }
            Ok::<_, Error>(results)
        })
        .buffer_unordered(workers)
        .try_concat()
        .await?;
    done.sort_by_key(|(place, _)| *place);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

fn tenant(slug: String, id: Option<String>, key: Option<&String>) -> Result<Tenant> {
    let key = key
        .map(|key| {
            let mut value = HeaderValue::from_str(key).map_err(|_| {
                Error::Environment(format!(
                    "the key of tenant {slug:?} is not a header's value"
                ))
            })?;
            value.set_sensitive(true);
            Ok(value)
        })
        .transpose()?;
    Ok(Tenant {
        tag: Tag::of(&slug),
        slug,
        id,
        key,
    })
}

fn cumulative(wanted: &scenario::Population, count: usize) -> Vec<f64> {
    let weight: Box<dyn Fn(usize) -> f64> = match wanted.spread {
        Spread::Uniform => Box::new(|_| 1.0),
        Spread::Zipf => {
            let exponent = wanted.exponent.unwrap_or(1.0);
            Box::new(move |place| (place as f64 + 1.0).powf(-exponent))
        }
        Spread::Whales => {
            let whales = wanted.whales.unwrap_or(1).min(count);
            // Without small tenants the whales have all there is.
            let share = if whales == count {
                1.0
            } else {
                wanted.whale_share.unwrap_or(0.5)
            };
            Box::new(move |place| {
                if place < whales {
                    share / whales as f64
                } else {
                    (1.0 - share) / (count - whales) as f64
                }
            })
        }
    };
    let total: f64 = (0..count).map(&weight).sum();
    let mut sum = 0.0;
    (0..count)
        .map(|place| {
            sum += weight(place) / total;
            sum
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(wanted: &scenario::Population, count: usize) -> Vec<f64> {
        let tenants = (0..count)
            .map(|n| tenant(format!("t{n}"), None, None).unwrap())
            .collect();
        let population = Population {
            tenants,
            cumulative: cumulative(wanted, count),
        };
        let mut random = fastrand::Rng::with_seed(1);
        let mut drawn = vec![0.0; count];
        for _ in 0..100_000 {
            drawn[population.draw(&mut random)] += 1e-5;
        }
        drawn
    }

    #[test]
    fn draws_follow_the_spread() {
        let near = |share: f64, expected: f64| (share - expected).abs() < 0.01;
        let uniform = shares(&scenario::Population::default(), 4);
        assert!(
            uniform.iter().all(|share| near(*share, 0.25)),
            "{uniform:?}"
        );

        let zipf = scenario::Population {
            spread: Spread::Zipf,
            exponent: Some(1.0),
            ..Default::default()
        };
        let zipf = shares(&zipf, 3);
        let sum = 1.0 + 0.5 + 1.0 / 3.0;
        assert!(
            near(zipf[0], 1.0 / sum) && near(zipf[2], 1.0 / 3.0 / sum),
            "{zipf:?}"
        );

        let whales = scenario::Population {
            spread: Spread::Whales,
            whales: Some(2),
            whale_share: Some(0.8),
            ..Default::default()
        };
        let whales = shares(&whales, 10);
        assert!(
            near(whales[0], 0.4) && near(whales[1], 0.4) && near(whales[9], 0.025),
            "{whales:?}"
        );
    }
}
