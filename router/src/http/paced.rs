//! A client's socket with two clocks, for what hyper has none: until it is known
//! which HTTP is spoken, and while the client takes nothing of what it is sent.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep};

/// What a client that speaks HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The socket; reads and writes fail as timed out.
pub(super) struct Paced<S> {
    stream: S,
    /// How much of the preface was read, while all that was read is part of it:
    /// any other byte, or the last of these, says which HTTP it is.
    greeted: Option<usize>,
    greeting: Clock,
    sending: Clock,
    /// Goes once something was read, or with the connection.
    silent: Option<mpsc::Sender<Infallible>>,
}

/// Runs while something is waited for.
struct Clock {
    longest: Duration,
    running: bool,
    sleep: Pin<Box<Sleep>>,
}

impl Clock {
    fn new(longest: Duration) -> Self {
        Self {
            longest,
            running: false,
            sleep: Box::pin(sleep(longest)),
        }
    }

    /// What was waited for has come.
    fn stop(&mut self) {
        self.running = false;
    }

    /// Fails once it was waited for too long.
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if !self.running {
            self.running = true;
            self.sleep.as_mut().reset(Instant::now() + self.longest);
        }
        ready!(self.sleep.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S> Paced<S> {
    /// The client has `greeting_max` from now on to say which HTTP it speaks, and
    /// never takes longer than `send_max` until it takes more of an answer. `silent` is
    /// held until then.
    pub(super) fn new(
        stream: S,
        greeting_max: Duration,
        send_max: Duration,
        silent: mpsc::Sender<Infallible>,
    ) -> Self {
        let mut greeting = Clock::new(greeting_max);
        greeting.running = true;
        Self {
            stream,
            greeted: Some(0),
            greeting,
            sending: Clock::new(send_max),
            silent: Some(silent),
        }
    }

    fn heard(&mut self, bytes: &[u8]) {
        if let Some(greeted) = self.greeted {
            let rest = PREFACE.get(greeted..).unwrap_or_default();
            let more = bytes.len() < rest.len() && rest.starts_with(bytes);
            self.greeted = more.then_some(greeted + bytes.len());
        }
    }

    fn sent<T>(
        &mut self,
        context: &mut Context<'_>,
        sent: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match sent {
            Poll::Pending => self.sending.wait(context),
            sent => {
                self.sending.stop();
                sent
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, into);
        if this.greeted.is_none() {
            return read;
        }
        match read {
            Poll::Pending => this.greeting.wait(context),
            read => {
                this.silent = None;
                this.heard(into.filled().get(before..).unwrap_or_default());
                read
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.sent(context, sent)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_write_vectored(context, pieces);
        this.sent(context, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_flush(context);
        this.sent(context, sent)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_shutdown(context);
        this.sent(context, sent)
    }
}
