//! A session with a Postgres server: statements in the extended protocol, as many
//! as are wanted in one message that ends with one Sync.
//!
//! tokio-postgres says Sync behind each statement. A transaction of six is then
//! answered in six pieces, each of them a system call of the server's and a
//! wake-up of ours, which cost a small write more than its work does. It still
//! does the login ([`tenancy::socket`]), and all that is no request's.
//!
//! A session is used by one task at a time, which reads and writes the socket
//! itself: there is no other one to wake.

mod db_error;

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::IsNull;
use postgres_protocol::message::backend::{DataRowBody, Message, RowDescriptionBody};
use postgres_protocol::message::frontend::{self, BindError};
use tenancy::socket::Socket;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio_postgres::types::Type;

pub use db_error::DbError;

/// Room that is made before more of an answer is read.
const READ_BYTES: usize = 8 << 10;
/// Postgres' number of the binary format; that of text is 0.
const BINARY: i16 = 1;
/// ReadyForQuery's word for: outside of any transaction.
const IDLE: u8 = b'I';
/// A message's type and length.
const HEADER_BYTES: usize = 5;
/// The type of a row's message.
const DATA_ROW: u8 = b'D';
/// Where in Postgres a warning comes from that a COMMIT returns without its
/// synchronous standbys' word.
const SYNC_REP_WAIT: &str = "SyncRepWaitForLSN";

/// A connection that is logged in.
pub struct Session {
    socket: Socket,
    sending: BytesMut,
    received: BytesMut,
    /// Statements that were given names.
    named: u64,
    forgotten: Vec<Prepared>,
    /// Nothing more comes of it.
    ended: bool,
    /// Of what was added last the server got nothing at all.
    unsent: bool,
    /// By its last answer: everything was answered, and no transaction is open.
    idle: bool,
    standbys_not_awaited: bool,
    /// Bytes of rows at most that are read of one answer.
    rows_bytes_max: usize,
}

/// Why an answer is read no further, as an [`io::Error`]'s source: its rows are
/// more than may be. What the statement has done is not known.
#[derive(Debug, thiserror::Error)]
#[error("the rows of the answer are more than may be read")]
pub struct TooLarge;

/// A statement that the server knows by a name of the session's.
#[derive(Clone, Debug)]
pub struct Prepared(Arc<Known>);

#[derive(Debug)]
struct Known {
    name: String,
    columns: Vec<Column>,
}

#[derive(Debug)]
struct Column {
    name: String,
    type_oid: u32,
}

/// A parameter as it is sent.
#[derive(Debug)]
pub enum Value<'a> {
    /// In binary.
    Uuid(&'a uuid::Uuid),
    /// In binary.
    Bigint(i64),
    /// As text, which the server reads with the type's own input function,
    /// whatever the type.
    Text(&'a [u8]),
    /// NULL of any type.
    Null,
}

/// A row as it came.
#[derive(Debug)]
pub struct Row {
    bytes: Bytes,
    values: Vec<Option<Range<usize>>>,
}

/// What the server said up to its next ReadyForQuery.
#[derive(Debug, Default)]
pub struct Said {
    /// The rows of each statement that was carried out, in order.
    pub done: Vec<Vec<Row>>,
    /// Why the next one was not, nor any behind it.
    pub refused: Option<Box<DbError>>,
    columns: Vec<Column>,
}

impl Session {
    /// On a socket that was logged in on.
    pub fn new(socket: Socket) -> Self {
        Self {
            socket,
            sending: BytesMut::new(),
            received: BytesMut::new(),
            named: 0,
            forgotten: Vec::new(),
            ended: false,
            unsent: false,
            idle: true,
            standbys_not_awaited: false,
            rows_bytes_max: usize::MAX,
        }
    }

    /// From now on an answer of more bytes of rows ends the session, before the row
    /// that is too much has been read.
    pub fn bound_rows(&mut self, bytes_max: usize) {
        self.rows_bytes_max = bytes_max;
    }

    /// Has a statement parsed, in a round trip of its own. `types` are those of its
    /// first parameters; the server infers the others.
    ///
    /// # Errors
    /// The connection broke; what Postgres refuses is the answer.
    pub async fn prepare(
        &mut self,
        sql: &str,
        types: &[Type],
    ) -> io::Result<Result<Prepared, Box<DbError>>> {
        let name = format!("s{}", self.named);
        self.named += 1;
        let types = types.iter().map(Type::oid);
        frontend::parse(&name, sql, types, &mut self.sending)?;
        frontend::describe(b'S', &name, &mut self.sending)?;
        self.sync();
        self.send().await?;
        let said = self.answer().await?;
        let columns = said.columns;
        Ok(match said.refused {
            Some(refused) => Err(refused),
            None => Ok(Prepared(Arc::new(Known { name, columns }))),
        })
    }

    /// The server may forget a statement, once nobody has it any more.
    pub fn forget(&mut self, statement: Prepared) {
        self.forgotten.push(statement);
    }

    /// Adds to the message that the server forgets what it may.
    ///
    /// # Errors
    /// None: the names are ours.
    pub fn close_forgotten(&mut self) -> io::Result<()> {
        let unused = |statement: &mut Prepared| Arc::strong_count(&statement.0) == 1;
        for statement in self.forgotten.extract_if(.., unused) {
            frontend::close(b'S', &statement.0.name, &mut self.sending)?;
        }
        Ok(())
    }

    /// Adds a statement to the message.
    ///
    /// # Errors
    /// Its values are more than a message holds.
    pub fn add(&mut self, statement: &Prepared, values: &[Value<'_>]) -> io::Result<()> {
        self.bind(&statement.0.name, values)
    }

    /// Adds a statement without values that the server does not know yet, and need
    /// not remember.
    ///
    /// # Errors
    /// None: the text is one of ours.
    pub fn add_text(&mut self, sql: &'static str) -> io::Result<()> {
        frontend::parse("", sql, [], &mut self.sending)?;
        self.bind("", &[])
    }

    fn bind(&mut self, name: &str, values: &[Value<'_>]) -> io::Result<()> {
        self.unsent = true;
        let formats = values.iter().map(Value::format);
        let write = |value: &Value<'_>, out: &mut BytesMut| Ok(value.write(out));
        let bound = frontend::bind(
            "",
            name,
            formats,
            values,
            write,
            [BINARY],
            &mut self.sending,
        );
        bound.map_err(|error| match error {
            BindError::Conversion(error) => io::Error::other(error),
            BindError::Serialization(error) => error,
        })?;
        frontend::execute("", 0, &mut self.sending)
    }

    /// Ends the message: one answer is for all that was added since the last end.
    pub fn sync(&mut self) {
        frontend::sync(&mut self.sending);
    }

    /// Adds a whole message of statements as text. The first of them that fails is
    /// the last.
    ///
    /// # Errors
    /// None: the text is one of ours.
    pub fn add_query(&mut self, sql: &str) -> io::Result<()> {
        frontend::query(sql, &mut self.sending)
    }

    /// Sends all that was added. Nothing is read meanwhile: what the server answers
    /// before it has read everything is small, and fits the socket's buffers. Should a
    /// function that runs first say more than that, the request's deadline ends it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self) -> io::Result<()> {
        self.idle = false;
        let whole = self.sending.len();
        let sent = self.socket.write_all_buf(&mut self.sending).await;
        self.unsent = sent.is_err() && self.sending.len() == whole;
        let sent = match sent {
            Ok(()) => self.socket.flush().await,
            failed => failed,
        };
        self.ended |= sent.is_err();
        sent
    }

    /// Reads the answer to the next message that was sent.
    ///
    /// # Errors
    /// The connection broke before the server said why, or [`TooLarge`].
    pub async fn answer(&mut self) -> io::Result<Said> {
        let mut said = Said::default();
        let mut rows = Vec::new();
        let mut left = self.rows_bytes_max;
        loop {
            let message = match self.message(left).await {
                Ok(message) => message,
                Err(error) => {
                    self.ended = true;
                    // Its last word, where it had one.
                    return match said.refused {
                        Some(_) => Ok(said),
                        None => Err(error),
                    };
                }
            };
            match message {
                Message::DataRow(body) => {
                    left = left.saturating_sub(body.buffer_bytes().len());
                    rows.push(Row::read(&body)?);
                }
                Message::CommandComplete(_) | Message::EmptyQueryResponse => {
                    said.done.push(std::mem::take(&mut rows));
                }
                Message::RowDescription(body) => said.columns = columns(&body)?,
                Message::ErrorResponse(body) => {
                    said.refused = Some(Box::new(DbError::read(body.fields())?));
                }
                Message::ReadyForQuery(body) => {
                    self.idle = body.status() == IDLE;
                    return Ok(said);
                }
                Message::NoticeResponse(body) => {
                    let notice = DbError::read(body.fields())?;
                    self.standbys_not_awaited |= notice.routine() == Some(SYNC_REP_WAIT);
                }
                Message::ParseComplete
                | Message::BindComplete
                | Message::CloseComplete
                | Message::NoData
                | Message::ParameterDescription(_)
                | Message::ParameterStatus(_)
                | Message::NotificationResponse(_) => {}
                _ => {
                    self.ended = true;
                    return Err(io::Error::other("the server said what nobody asked for"));
                }
            }
        }
    }

    async fn message(&mut self, rows_left: usize) -> io::Result<Message> {
        loop {
            // Told by its header: `parse` makes room for the whole of it.
            if row_bytes(&self.received).is_some_and(|bytes| bytes > rows_left) {
                return Err(io::Error::other(TooLarge));
            }
            if let Some(message) = Message::parse(&mut self.received)? {
                return Ok(message);
            }
            // `parse` has made room for the rest of a large one.
            if self.received.capacity() - self.received.len() < READ_BYTES / 2 {
                self.received.reserve(READ_BYTES);
            }
            if self.socket.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Whether the server got nothing of the last message: it could not be written, or
    /// the connection was closed before its first byte had left.
    pub fn is_unsent(&self) -> bool {
        self.unsent
    }

    /// By the last answer that was read, no transaction is open.
    pub fn is_idle(&self) -> bool {
        self.idle && !self.ended
    }

    /// Whether, since this was asked last, a COMMIT was answered although its
    /// wait for synchronous standbys had been cut short: by a request to cancel
    /// it, whoever sent that, or by a `statement_timeout`.
    pub fn standbys_were_not_awaited(&mut self) -> bool {
        std::mem::take(&mut self.standbys_not_awaited)
    }

    /// Whether the server is still there, as far as it has said, while nothing is
    /// asked of it. What it says then, but for a changed setting, is its last word.
    pub fn is_open(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let mut bytes = [0; 512];
        while !self.ended {
            let mut said = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.socket).poll_read(&mut context, &mut said) {
                Poll::Pending => return self.heard_nothing_bad(),
                Poll::Ready(Ok(())) if !said.filled().is_empty() => {
                    self.received.put_slice(said.filled());
                }
                Poll::Ready(_) => self.ended = true,
            }
        }
        false
    }

    fn heard_nothing_bad(&mut self) -> bool {
        while let Some(message) = Message::parse(&mut self.received).transpose() {
            self.ended |= !matches!(
                message,
                Ok(Message::ParameterStatus(_)
                    | Message::NoticeResponse(_)
                    | Message::NotificationResponse(_))
            );
            if self.ended {
                return false;
            }
        }
        true
    }
}

impl Prepared {
    /// Whether its result has a column of this name first.
    pub fn begins_with(&self, column: &str) -> bool {
        self.0.columns.first().is_some_and(|c| c.name == column)
    }

    /// A column's bytes, in Postgres' binary format; of a text those are the text's.
    /// NULL reads as none, and so does a column that there is not.
    pub fn value<'a>(&self, row: &'a Row, column: &str) -> Option<&'a [u8]> {
        let known = self.0.columns.iter();
        let (column, range) = known.zip(&row.values).find(|(c, _)| c.name == column)?;
        let value = row.bytes.get(range.clone()?)?;
        // In the binary format a version comes before the text.
        match column.type_oid == Type::JSONB.oid() {
            true => value.get(1..),
            false => Some(value),
        }
    }

    /// A bigint or integer column; one of another length reads as none.
    pub fn number(&self, row: &Row, column: &str) -> Option<i64> {
        let value = self.value(row, column)?;
        match *value {
            [a, b, c, d] => Some(i32::from_be_bytes([a, b, c, d]).into()),
            _ => value.try_into().ok().map(i64::from_be_bytes),
        }
    }

    /// A boolean column.
    pub fn is_true(&self, row: &Row, column: &str) -> Option<bool> {
        Some(self.value(row, column)? == [1])
    }
}

impl Row {
    fn read(body: &DataRowBody) -> io::Result<Self> {
        Ok(Self {
            values: body.ranges().collect()?,
            bytes: body.buffer_bytes().clone(),
        })
    }

    /// A column of a statement that was sent as text.
    pub fn text(&self, column: usize) -> Option<&str> {
        let range = self.values.get(column)?.clone()?;
        std::str::from_utf8(self.bytes.get(range)?).ok()
    }
}

/// The length that the header of a row's message tells, where that is what begins
/// here; of its body or some bytes more.
fn row_bytes(received: &[u8]) -> Option<usize> {
    let header = received.first_chunk::<HEADER_BYTES>()?;
    let [DATA_ROW, length @ ..] = *header else {
        return None;
    };
    usize::try_from(u32::from_be_bytes(length)).ok()
}

fn columns(body: &RowDescriptionBody) -> io::Result<Vec<Column>> {
    let column = |field: postgres_protocol::message::backend::Field<'_>| {
        Ok(Column {
            name: field.name().to_owned(),
            type_oid: field.type_oid(),
        })
    };
    body.fields().map(column).collect()
}

impl Value<'_> {
    fn format(&self) -> i16 {
        match self {
            Self::Uuid(_) | Self::Bigint(_) => BINARY,
            Self::Text(_) | Self::Null => 0,
        }
    }

    fn write(&self, out: &mut BytesMut) -> IsNull {
        match self {
            Self::Uuid(id) => out.put_slice(id.as_bytes()),
            Self::Bigint(number) => out.put_i64(*number),
            Self::Text(bytes) => out.put_slice(bytes),
            Self::Null => return IsNull::Yes,
        }
        IsNull::No
    }
}
