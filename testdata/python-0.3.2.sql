-- What version 0.3.2 adds to a database of 0.1.2: its tables word for word, and
-- rows of every kind that they can hold. $1 to $4 are hashes of service tokens.

CREATE TABLE groups (
	id VARCHAR(36) NOT NULL,
	name VARCHAR(255) NOT NULL,
	description VARCHAR(500) NOT NULL,
	org_id VARCHAR(100) NOT NULL,
	created_at VARCHAR(50) NOT NULL,
	updated_at VARCHAR(50) NOT NULL,
	PRIMARY KEY (id)
);
CREATE INDEX ix_groups_name ON groups (name);
CREATE INDEX ix_groups_org_id ON groups (org_id);
CREATE TABLE group_members (
	group_id VARCHAR(36) NOT NULL,
	user_id VARCHAR(36) NOT NULL,
	joined_at VARCHAR(50) NOT NULL,
	PRIMARY KEY (group_id, user_id)
);
CREATE INDEX ix_group_members_user_id ON group_members (user_id);
CREATE TABLE service_tokens (
	id VARCHAR(36) NOT NULL,
	name VARCHAR(255) NOT NULL,
	token_hash VARCHAR(64) NOT NULL,
	role VARCHAR(50) NOT NULL,
	org_id VARCHAR(100) NOT NULL,
	description VARCHAR(500) NOT NULL,
	created_at VARCHAR(50) NOT NULL,
	revoked_at VARCHAR(50),
	PRIMARY KEY (id)
);
CREATE INDEX ix_service_tokens_name ON service_tokens (name);
CREATE UNIQUE INDEX ix_service_tokens_token_hash ON service_tokens (token_hash);
CREATE TABLE email_credentials (
	id VARCHAR(36) NOT NULL,
	agent_id VARCHAR(128) NOT NULL,
	email VARCHAR(256) NOT NULL,
	imap_host VARCHAR(256) NOT NULL,
	imap_port INTEGER NOT NULL,
	smtp_host VARCHAR(256) NOT NULL,
	smtp_port INTEGER NOT NULL,
	username VARCHAR(256) NOT NULL,
	password VARCHAR(512) NOT NULL,
	use_tls BOOLEAN NOT NULL,
	created_at VARCHAR(50) NOT NULL,
	PRIMARY KEY (id)
);
CREATE UNIQUE INDEX ix_email_credentials_agent_id ON email_credentials (agent_id);

INSERT INTO groups VALUES
	('g2', 'team', 'the second', 'acme', '2026-07-02T00:00:00.000001+00:00', '2026-07-03T00:00:00+00:00'),
	('g1', 'team', 'the first', 'acme', '2026-07-01T00:00:00+00:00', '2026-07-03T00:00:00+00:00'),
	('g3', 'team', '', 'beta', '2026-07-04T00:00:00+00:00', '2026-07-04T00:00:00+00:00'),
	('g4', 'a/b,c' || char(27, 155) || 'd', '', 'acme', '2026-07-05T00:00:00+00:00', '2026-07-05T00:00:00+00:00'),
	('g5', 'a-b-c--d', '', 'acme', '2026-07-06T00:00:00+00:00', '2026-07-06T00:00:00+00:00'),
	('g6', '', '', 'acme', 'yesterday', '');
INSERT INTO group_members VALUES
	('g1', 'whole', '2026-07-01T00:00:01+00:00'),
	('g2', 'whole', '2026-07-02T00:00:01+00:00'),
	('g4', 'whole', '2026-07-05T00:00:01+00:00'),
	('g6', 'whole', 'yesterday'),
	('g1', 'shut', '2026-07-01T00:00:00+00:00'),
	('g1', 'nobody', '2026-07-01T00:00:00+00:00'),
	('g0', 'plain', '2026-07-01T00:00:00+00:00'),
	('g3', 'plain', '2026-07-04T00:00:00+00:00');
INSERT INTO service_tokens VALUES
	('s1', 'bot', $1, 'operator', 'acme', 'answers mail', '2026-07-01T00:00:00+00:00', NULL),
	('s2', 'bot', $2, 'auditor', 'beta', '', '2026-07-02T00:00:00+00:00', NULL),
	('s3', 'bot', $3, 'superadmin', 'acme', '', '2026-06-01T00:00:00+00:00', '2026-06-02T00:00:00+00:00'),
	('s4', 'ein Name/2', $4, 'viewer', 'acme', '', '2026-07-03T00:00:00+00:00', NULL);
INSERT INTO email_credentials VALUES
	('e1', 'agent', 'bot@example.com', '', 0, '', 0, '', '', 1, '2026-07-01T00:00:00+00:00');
