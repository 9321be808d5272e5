-- Schema 0001 as released; never edited afterwards.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE artifacts (
	job_uid TEXT NOT NULL, 
	name TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	path TEXT NOT NULL, 
	size_bytes INTEGER NOT NULL, 
	time REAL NOT NULL, 
	attempt INTEGER NOT NULL, 
	generation INTEGER NOT NULL, 
	PRIMARY KEY (job_uid, name), 
	FOREIGN KEY(job_uid) REFERENCES jobs (uid) ON DELETE CASCADE
)
 STRICT

;
CREATE TABLE attempts (
	job_uid TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	num_nodes INTEGER NOT NULL, 
	executor TEXT NOT NULL, 
	create_time REAL NOT NULL, 
	launch TEXT NOT NULL, 
	launch_time REAL, 
	generation INTEGER NOT NULL, 
	end_cause TEXT NOT NULL, 
	message TEXT NOT NULL, 
	end_time REAL, 
	close_time REAL, 
	versions TEXT NOT NULL, 
	PRIMARY KEY (job_uid, number), 
	FOREIGN KEY(job_uid) REFERENCES jobs (uid) ON DELETE CASCADE
)
 STRICT

;
CREATE TABLE checkpoints (
	job_uid TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	generation INTEGER NOT NULL, 
	phase_index INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	digest TEXT NOT NULL, 
	path TEXT NOT NULL, 
	size_bytes INTEGER NOT NULL, 
	time REAL NOT NULL, 
	eval_loss REAL, 
	removed INTEGER NOT NULL, 
	PRIMARY KEY (job_uid, attempt, generation, phase_index, step), 
	FOREIGN KEY(job_uid) REFERENCES jobs (uid) ON DELETE CASCADE
)
 STRICT

;
CREATE TABLE dependencies (
	job_uid TEXT NOT NULL, 
	needed_uid TEXT NOT NULL, 
	PRIMARY KEY (job_uid, needed_uid), 
	FOREIGN KEY(job_uid) REFERENCES jobs (uid) ON DELETE CASCADE
)
 STRICT

;
CREATE TABLE events (
	revision INTEGER NOT NULL, 
	job_uid TEXT NOT NULL, 
	sequence INTEGER NOT NULL, 
	tenant TEXT NOT NULL, 
	job_name TEXT NOT NULL, 
	time REAL NOT NULL, 
	type TEXT NOT NULL, 
	message TEXT NOT NULL, 
	severity TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	generation INTEGER NOT NULL, 
	node INTEGER, 
	state TEXT NOT NULL, 
	details TEXT NOT NULL, 
	PRIMARY KEY (revision)
)
 STRICT

;
CREATE TABLE generations (
	job_uid TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	create_time REAL NOT NULL, 
	world_size INTEGER NOT NULL, 
	address TEXT NOT NULL, 
	resume_from TEXT, 
	fallbacks TEXT NOT NULL, 
	journal_head TEXT, 
	parent TEXT NOT NULL, 
	start_step INTEGER NOT NULL, 
	last_step INTEGER NOT NULL, 
	phase_index INTEGER NOT NULL, 
	phase_started INTEGER NOT NULL, 
	save_failed TEXT NOT NULL, 
	end_time REAL, 
	end_cause TEXT NOT NULL, 
	message TEXT NOT NULL, 
	PRIMARY KEY (job_uid, attempt, number), 
	FOREIGN KEY(job_uid) REFERENCES jobs (uid) ON DELETE CASCADE
)
 STRICT

;
CREATE TABLE jobs (
	uid TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	name TEXT NOT NULL, 
	display_name TEXT NOT NULL, 
	labels TEXT NOT NULL, 
	spec TEXT NOT NULL, 
	spec_wire BLOB NOT NULL, 
	method TEXT NOT NULL, 
	queue TEXT NOT NULL, 
	priority INTEGER NOT NULL, 
	state TEXT NOT NULL, 
	waiting_reason TEXT NOT NULL, 
	waiting_message TEXT NOT NULL, 
	retry_at REAL, 
	pause_cause TEXT NOT NULL, 
	failure TEXT, 
	result TEXT, 
	plan_finished INTEGER NOT NULL, 
	progress TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	generation INTEGER NOT NULL, 
	num_nodes INTEGER NOT NULL, 
	wanted_nodes INTEGER, 
	micro_batch_size INTEGER NOT NULL, 
	budget_used TEXT NOT NULL, 
	last_end TEXT, 
	excluded_hosts TEXT NOT NULL, 
	dependencies TEXT NOT NULL, 
	cause TEXT NOT NULL, 
	cause_since REAL NOT NULL, 
	cause_micros TEXT NOT NULL, 
	version INTEGER NOT NULL, 
	create_time REAL NOT NULL, 
	update_time REAL NOT NULL, 
	start_time REAL, 
	end_time REAL, 
	paused_seconds REAL NOT NULL, 
	event_sequence INTEGER NOT NULL, 
	stamp INTEGER NOT NULL, 
	PRIMARY KEY (uid)
)
 STRICT

;
CREATE TABLE labels (
	job_uid TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (job_uid, "key"), 
	FOREIGN KEY(job_uid) REFERENCES jobs (uid) ON DELETE CASCADE
)
 STRICT

;
CREATE TABLE meta (
	"key" TEXT NOT NULL, 
	value INTEGER NOT NULL, 
	PRIMARY KEY ("key")
)
 STRICT

;
INSERT INTO "meta" VALUES('epoch',0);
INSERT INTO "meta" VALUES('revision',0);
INSERT INTO "meta" VALUES('dropped',0);
CREATE TABLE nodes (
	job_uid TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	"index" INTEGER NOT NULL, 
	incarnation TEXT NOT NULL, 
	superseded TEXT NOT NULL, 
	host TEXT NOT NULL, 
	metrics_port INTEGER NOT NULL, 
	handle TEXT NOT NULL, 
	versions TEXT NOT NULL, 
	state TEXT NOT NULL, 
	ready_after INTEGER NOT NULL, 
	ready TEXT NOT NULL, 
	preflight TEXT NOT NULL, 
	formed INTEGER NOT NULL, 
	"left" INTEGER NOT NULL, 
	acked INTEGER NOT NULL, 
	exit_code INTEGER, 
	finished INTEGER NOT NULL, 
	PRIMARY KEY (job_uid, attempt, "index"), 
	FOREIGN KEY(job_uid) REFERENCES jobs (uid) ON DELETE CASCADE
)
 STRICT

;
CREATE TABLE points (
	job_uid TEXT NOT NULL, 
	name TEXT NOT NULL, 
	stretch INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	count INTEGER NOT NULL, 
	mean REAL NOT NULL, 
	min REAL NOT NULL, 
	max REAL NOT NULL, 
	time REAL NOT NULL, 
	PRIMARY KEY (job_uid, name, stretch), 
	FOREIGN KEY(job_uid) REFERENCES jobs (uid) ON DELETE CASCADE
)
 STRICT

;
CREATE TABLE rank_ends (
	job_uid TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	generation INTEGER NOT NULL, 
	rank INTEGER NOT NULL, 
	node INTEGER NOT NULL, 
	code INTEGER NOT NULL, 
	message TEXT NOT NULL, 
	section TEXT NOT NULL, 
	step INTEGER NOT NULL, 
	phase_index INTEGER NOT NULL, 
	log_lines TEXT NOT NULL, 
	hung INTEGER NOT NULL, 
	reaped INTEGER NOT NULL, 
	time REAL NOT NULL, 
	PRIMARY KEY (job_uid, attempt, generation, rank), 
	FOREIGN KEY(job_uid) REFERENCES jobs (uid) ON DELETE CASCADE
)
 STRICT

;
CREATE TABLE requests (
	tenant TEXT NOT NULL, 
	request_id TEXT NOT NULL, 
	body_hash TEXT NOT NULL, 
	job_uid TEXT NOT NULL, 
	create_time REAL NOT NULL, 
	PRIMARY KEY (tenant, request_id)
)
 STRICT

;
CREATE TABLE series (
	job_uid TEXT NOT NULL, 
	name TEXT NOT NULL, 
	width INTEGER NOT NULL, 
	stretches INTEGER NOT NULL, 
	last_step INTEGER NOT NULL, 
	PRIMARY KEY (job_uid, name), 
	FOREIGN KEY(job_uid) REFERENCES jobs (uid) ON DELETE CASCADE
)
 STRICT

;
CREATE INDEX jobs_by_time ON jobs (tenant, create_time, uid);
CREATE INDEX jobs_by_state ON jobs (tenant, state, create_time, uid);
CREATE UNIQUE INDEX jobs_by_name ON jobs (tenant, name);
CREATE INDEX jobs_in_state ON jobs (state);
CREATE INDEX requests_by_time ON requests (create_time);
CREATE INDEX events_by_tenant ON events (tenant, revision);
CREATE UNIQUE INDEX events_by_job ON events (job_uid, sequence);
CREATE INDEX labels_by_value ON labels ("key", value, job_uid);
CREATE INDEX dependencies_by_needed ON dependencies (needed_uid);
CREATE INDEX attempts_open ON attempts (close_time, job_uid);
COMMIT;
