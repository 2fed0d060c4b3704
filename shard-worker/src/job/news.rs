//! Hears of jobs' transitions, so that none waits for a timer: `LISTEN` on a
//! connection of its own. Whoever waits also looks by timer: news may be lost.

use std::time::Duration;

use futures_util::StreamExt;
use tenancy::tls::Tls;
use tokio::sync::watch;
use tokio_postgres::{AsyncMessage, Config};
use tokio_util::sync::CancellationToken;

const RETRY: Duration = Duration::from_secs(1);

/// Wakes whoever waits for a job.
#[derive(Clone)]
pub struct News {
    count: watch::Sender<u64>,
    stop: CancellationToken,
}

impl News {
    /// Listens until `stop`.
    pub fn listen(mut config: Config, tls: Tls, stop: CancellationToken) -> Self {
        config
            .connect_timeout(Duration::from_secs(2))
            .application_name("ringfence-jobs");
        let news = Self {
            count: watch::Sender::new(0),
            stop: stop.clone(),
        };
        let own = news.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = own.hear(&config, &tls) => {}
            }
        });
        news
    }

    /// Changes with each piece of news.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }

    /// A job's time comes then: whoever looks for jobs looks at once.
    pub(super) fn again_in(&self, wait: Duration) {
        let (count, stop) = (self.count.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => count.send_modify(|count| *count += 1),
            }
        });
    }

    async fn hear(&self, config: &Config, tls: &Tls) {
        loop {
            if let Err(error) = self.hear_one_connection(config, tls).await {
                tracing::debug!(error = tenancy::chain(&error), "no news of jobs");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn hear_one_connection(
        &self,
        config: &Config,
        tls: &Tls,
    ) -> Result<(), tokio_postgres::Error> {
        let (client, mut connection) = tls.connect(config).await?;
        let listen = tokio::spawn(async move {
            let listening = client.batch_execute("listen ringfence_job").await;
            // The client must live as long as its connection is heard.
            listening.map(|()| client)
        });
        let mut messages =
            futures_util::stream::poll_fn(|context| connection.poll_message(context));
        while let Some(message) = messages.next().await {
            if let AsyncMessage::Notification(_) = message? {
                self.count.send_modify(|count| *count += 1);
            }
        }
        listen.abort();
        Ok(())
    }
}
