-- Also of a session that replays what others have done (session_replication_role).
alter table ringfence.audit enable always trigger refuse_audit_change;
