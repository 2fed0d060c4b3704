//! To a collector: OTLP over HTTP, as protobuf.

use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};

use crate::outbox::{DELIVERY_MAX, Server};
use crate::{Service, TelemetryError};

pub(super) struct Collector(SpanExporter);

impl Collector {
    pub(super) fn new(
        service: &Service,
        url: &str,
        client: reqwest::Client,
    ) -> Result<Self, TelemetryError> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint(url)?)
            .with_timeout(DELIVERY_MAX)
            .build();
        let mut exporter = exporter.map_err(|error| TelemetryError::Exporter(error.to_string()))?;
        exporter.set_resource(
            &Resource::builder_empty()
                .with_attributes([
                    KeyValue::new("service.name", service.name),
                    KeyValue::new("service.namespace", "ringfence"),
                    KeyValue::new("service.instance.id", service.instance.clone()),
                    KeyValue::new("service.version", service.version),
                ])
                .build(),
        );
        Ok(Self(exporter))
    }
}

/// The traces' own address below a collector's.
fn endpoint(url: &str) -> Result<String, TelemetryError> {
    let refused = || TelemetryError::Url(url.to_owned());
    let parsed = reqwest::Url::parse(url).map_err(|_| refused())?;
    if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
        return Err(refused());
    }
    let base = url.trim_end_matches('/');
    Ok(match base.ends_with("/v1/traces") {
        true => base.to_owned(),
        false => format!("{base}/v1/traces"),
    })
}

impl Server for Collector {
    type Item = Vec<SpanData>;
    const KIND: &'static str = "spans";
    const QUEUE_MAX: usize = 1_024;
    const BATCH_MAX: usize = 256;

    fn count(spans: &Vec<SpanData>) -> u64 {
        u64::try_from(spans.len()).unwrap_or(u64::MAX)
    }

    async fn deliver(&self, batch: Vec<Vec<SpanData>>) -> Result<(), String> {
        let spans = batch.into_iter().flatten().collect();
        let exported = self.0.export(spans).await;
        exported.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_added_where_it_is_not_there() {
        for (url, wanted) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("https://c/otlp/", "https://c/otlp/v1/traces"),
            ("http://c/v1/traces", "http://c/v1/traces"),
        ] {
            assert_eq!(endpoint(url).unwrap(), wanted);
        }
        for wrong in ["collector:4318", "grpc://collector", "http://", ""] {
            let error = endpoint(wrong).unwrap_err().to_string();
            assert!(error.contains("traces.otlp_url"), "{error}");
        }
    }
}
