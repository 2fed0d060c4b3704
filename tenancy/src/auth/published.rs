//! Issuers' keys that are published at a URL. Here they are only kept, the last
//! ones that were had: fetching them is for who knows HTTP.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jsonwebtoken::jwk::JwkSet;

use super::token::JwksError;

/// Documents by URL; read by every request, without waiting.
#[derive(Default)]
pub struct Published(ArcSwap<HashMap<Box<str>, Arc<Document>>>);

/// A JWKS document (RFC 7517, section 5).
pub(super) struct Document {
    text: Box<str>,
    pub(super) keys: JwkSet,
}

impl Published {
    /// Takes what was found at `url`; returns whether that is news.
    ///
    /// # Errors
    /// Where it is no JWKS document; what was known stays.
    pub fn put(&self, url: &str, text: &str) -> Result<bool, JwksError> {
        let known = self.get(url);
        // One and the same stays one and the same: verified tokens go on counting.
        if known.is_some_and(|known| &*known.text == text) {
            return Ok(false);
        }
        let keys = serde_json::from_str(text).map_err(|error| JwksError(error.to_string()))?;
        let document = Arc::new(Document {
            text: text.into(),
            keys,
        });
        self.0.rcu(|documents| {
            let mut documents = HashMap::clone(documents);
            documents.insert(url.into(), document.clone());
            documents
        });
        Ok(true)
    }

    /// Whether anything was ever found there.
    pub fn knows(&self, url: &str) -> bool {
        self.0.load().contains_key(url)
    }

    /// Forgets what is at other URLs.
    pub fn retain(&self, urls: &[Box<str>]) {
        self.0.rcu(|documents| {
            let mut documents = HashMap::clone(documents);
            documents.retain(|url, _| urls.contains(url));
            documents
        });
    }

    /// All of it, as text by URL.
    pub fn texts(&self) -> HashMap<Box<str>, Box<str>> {
        let documents = self.0.load();
        let texts = documents.iter();
        let texts = texts.map(|(url, document)| (url.clone(), document.text.clone()));
        texts.collect()
    }

    pub(super) fn get(&self, url: &str) -> Option<Arc<Document>> {
        self.0.load().get(url).cloned()
    }
}
