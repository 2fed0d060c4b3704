//! Every rule: its id, why it is there, and what to write instead.

use std::fmt;

use serde::{Serialize, Serializer};

/// Whether a finding stops a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It stops it.
    Error,
    /// It is shown.
    Warning,
}

macro_rules! rules {
    ($($name:ident, $id:literal, $level:ident, $why:literal, $instead:literal;)*) => {
        /// A rule of the lint.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Rule {
            $(#[doc = $why] $name,)*
        }

        impl Rule {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its stable id.
            pub fn id(self) -> &'static str {
                match self { $(Self::$name => $id,)* }
            }

            /// Whether breaking it stops a run.
            pub fn level(self) -> Level {
                match self { $(Self::$name => Level::$level,)* }
            }

            /// Why it is there.
            pub fn why(self) -> &'static str {
                match self { $(Self::$name => $why,)* }
            }

            /// The safe way.
            pub fn instead(self) -> &'static str {
                match self { $(Self::$name => $instead,)* }
            }
        }
    };
}

rules! {
    Syntax, "syntax", Error,
        "Postgres would not parse it.",
        "Mend the statement.";
    UselessAllow, "useless-allow", Warning,
        "A permission that nothing needs hides the next mistake.",
        "Remove the line.";

    TableUnscoped, "table-unscoped", Error,
        "A table that belongs to no tenant is closed to the API, and never moves with a tenant.",
        "Add select ringfence.distribute('the_table'), or ringfence.reference('the_table') for rows that all tenants share.";
    TenantFirst, "tenant-first", Error,
        "A key without the tenant in front is unique across tenants: one would learn of another's values, and lookups could not use it.",
        "Begin the key with tenant_id, or make it before ringfence.distribute(), which adds it.";
    ForeignKeyAcrossTenants, "foreign-key-across-tenants", Error,
        "A foreign key without the tenant would let one tenant's row refer to another's.",
        "After distributing both tables: foreign key (tenant_id, x) references other (tenant_id, id).";
    ExclusionAcrossTenants, "exclusion-across-tenants", Error,
        "An exclusion constraint without the tenant would let one tenant's rows shut out another's; ringfence.distribute() refuses it.",
        "After distributing the table: exclude using gist (tenant_id with =, …), with the extension btree_gist.";
    RowSecurityOff, "row-security-off", Error,
        "Forced row level security is what keeps tenants apart on the shard itself.",
        "Leave it on; the migrator's own statements pass it.";
    RingfenceObject, "ringfence-object", Error,
        "The schema ringfence, its policies, triggers and column tenant_id are what keeps tenants apart.",
        "Call its functions; leave its objects to the worker.";
    Truncate, "truncate", Error,
        "Row level security does not stop TRUNCATE: it empties every tenant, and a trigger refuses it.",
        "DELETE, as a back-fill in chunks.";
    NotLogged, "not-logged", Error,
        "Temporary and unlogged tables are not replicated and can't be moved; a temporary one shadows a tenant's table.",
        "Make an ordinary table.";
    ViewRunsAsOwner, "view-runs-as-owner", Warning,
        "A view that runs with its owner's rights is hidden from the API.",
        "create view … with (security_invoker = true).";
    MaterializedView, "materialized-view", Warning,
        "A materialized view holds all tenants' rows without row security, and is hidden from the API.",
        "A distributed table that a job fills, or an ordinary view.";
    FunctionRunsAsOwner, "function-runs-as-owner", Warning,
        "A SECURITY DEFINER function is hidden from the API where its owner passes row security.",
        "security invoker, unless its owner is an ordinary role.";

    ContractDrop, "contract-drop", Error,
        "Applications and routers of the version before still read what is dropped or renamed.",
        "Expand first (add the new beside the old); put the removal into a file with `-- ringfence: phase contract`.";
    ContractUnseen, "contract-unseen", Error,
        "What a contract file removes is hidden from routers first; what this removes can't be told from the statement.",
        "Name each table, column, view and function by DROP or RENAME, without CASCADE where it would reach further; or allow it with the reason why nobody reads it.";

    IndexBlocksWrites, "index-blocks-writes", Error,
        "CREATE INDEX holds up every write of the table until it is built.",
        "create index concurrently, in a file with `-- ringfence: no-transaction`.";
    IndexDropBlocks, "index-drop-blocks", Error,
        "DROP INDEX waits for, and holds up, everything on the table.",
        "drop index concurrently, in a file with `-- ringfence: no-transaction`.";
    IndexUnnamed, "index-unnamed", Error,
        "A build that breaks leaves an invalid index behind; without a name it can't be found and built again.",
        "Name the index.";
    ConcurrentlyInTransaction, "concurrently-in-transaction", Error,
        "CONCURRENTLY can't be run in a transaction.",
        "Add `-- ringfence: no-transaction`.";
    ReindexBlocks, "reindex-blocks", Error,
        "REINDEX holds up every write of the table.",
        "reindex … concurrently, in a file with `-- ringfence: no-transaction`.";
    DetachBlocks, "detach-blocks", Error,
        "DETACH PARTITION holds up all work on the whole table.",
        "detach partition … concurrently, in a file with `-- ringfence: no-transaction`.";
    ColumnTypeRewrite, "column-type-rewrite", Error,
        "Another type can rewrite the whole table under a lock that stops reads and writes.",
        "Add a column of the new type, fill it by a back-fill, and drop the old one in a contract file.";
    SetNotNull, "set-not-null", Error,
        "SET NOT NULL scans the whole table under a lock that stops reads and writes.",
        "Add check (x is not null) not valid, validate it in a later file, then SET NOT NULL (which uses it) and drop the check.";
    DefaultRewrites, "default-rewrites", Error,
        "A default that is computed for each row rewrites the whole table under a lock.",
        "Add the column without it, set the default, and fill old rows by a back-fill.";
    RequiredColumn, "required-column", Error,
        "A NOT NULL column without a default fails on every table that has rows.",
        "Give it a default, or add it as nullable first.";
    ConstraintScans, "constraint-scans", Error,
        "A new constraint scans the whole table under a lock.",
        "Add it NOT VALID, and VALIDATE CONSTRAINT in a later file.";
    KeyBlocks, "key-blocks", Error,
        "A new unique or primary key builds its index under a lock that stops reads and writes.",
        "create unique index concurrently, then add constraint … using index.";
    ForeignKeyBlocks, "foreign-key-blocks", Error,
        "A new foreign key checks all rows while it holds up writes of both tables.",
        "Add it NOT VALID, and VALIDATE CONSTRAINT in a later file.";
    TableRewrites, "table-rewrites", Error,
        "It writes the whole table anew under a lock that stops reads and writes.",
        "Leave it to autovacuum; what must be rewritten, in an hour without requests, allowed with the reason.";
    LockTable, "lock-table", Error,
        "LOCK TABLE keeps everybody else waiting until the transaction's end.",
        "Leave it out: each statement takes the lock that it needs.";
    RowsBehindLock, "rows-behind-lock", Error,
        "A change of many rows in the transaction that altered a table keeps all requests for that table waiting until both are done.",
        "Put the change of rows into a later file, as a back-fill in a file with `-- ringfence: no-transaction`.";
    StatementsUnseen, "statements-unseen", Error,
        "No rule looks into a DO block or into CREATE SCHEMA: tables that they make, locks and removals go unseen.",
        "Write the statements out, each by itself; or allow it with the reason why it is safe.";
    TransactionControl, "transaction-control", Error,
        "The worker begins and ends transactions, with the history in the same one.",
        "Leave BEGIN, COMMIT and ROLLBACK out; `-- ringfence: no-transaction` runs each statement alone.";
    NameTooLong, "name-too-long", Error,
        "Postgres cuts names at 63 bytes without an error.",
        "Shorten it.";
    DropDatabase, "drop-database", Error,
        "A migration changes a schema; this would remove a shard.",
        "Leave it out.";
}

impl Rule {
    /// The rule of that id.
    pub fn of_id(id: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|rule| rule.id() == id)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}
