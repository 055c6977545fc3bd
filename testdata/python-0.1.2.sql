-- A database of the Python server 0.1.2: its schema word for word, and users
-- of every kind that such a database can hold. The hashes have bcrypt cost 4.

CREATE TABLE users (
	id VARCHAR(36) NOT NULL,
	email VARCHAR(255) NOT NULL,
	display_name VARCHAR(255) NOT NULL,
	password_hash VARCHAR(255) NOT NULL,
	role VARCHAR(50) NOT NULL,
	org_id VARCHAR(100) NOT NULL,
	status VARCHAR(50) NOT NULL,
	created_at VARCHAR(50) NOT NULL,
	last_login_at VARCHAR(50),
	PRIMARY KEY (id)
);
CREATE UNIQUE INDEX ix_users_email ON users (email);
CREATE TABLE refresh_tokens (
	id VARCHAR(36) NOT NULL,
	user_id VARCHAR(36) NOT NULL,
	token_hash VARCHAR(64) NOT NULL,
	expires_at VARCHAR(50) NOT NULL,
	created_at VARCHAR(50) NOT NULL,
	PRIMARY KEY (id)
);
CREATE UNIQUE INDEX ix_refresh_tokens_token_hash ON refresh_tokens (token_hash);
CREATE INDEX ix_refresh_tokens_user_id ON refresh_tokens (user_id);

INSERT INTO users VALUES
	('plain', 'Plain@example.com', 'Name of plain', '$2b$04$bNC4J8OiwixXkq5/MEhKGOj1lmfSXceFI.Eqp19Zh038QKPo0xKDu',
		'operator', 'acme', 'active', '2026-02-20T10:11:12.123456+00:00', '2026-03-01T00:00:00+00:00'),
	('whole', 'whole@example.com', 'Name of whole', '$2b$04$SVD226XfSQM1Uktx/iAxgeg9lM1TLCJw9hz.Cr/gPryFeTveigvA2',
		'org_admin', 'acme', 'active', '2026-02-20T10:11:13+00:00', NULL),
	('short', 'short@example.com', 'Name of short', '$2b$04$gefqRq2FCZ/qykdGncftMeRgVFy2q/cu/y7FTHST25EJa3QlrK.xu',
		'viewer', 'acme', 'active', '2026-02-20T10:11:12.123456+00:00', '2026-03-01T00:00:00+00:00'),
	('cut', 'cut@example.com', 'Name of cut', '$2b$04$g8SgSCc0AzkC8METgV1hyOAGdHwgqaBmgTM6NrCCV4KMOANjx8ywO',
		'viewer', 'acme', 'active', '2026-02-20T10:11:12.123456+00:00', NULL),
	('twin-upper', 'Twin@example.com', 'Name of twin-upper', '$2b$04$QnpcS61YYxXgOf.9rI15iuU9U/ZI0o/WB730YZ1PEgZsRTBCjXxJq',
		'viewer', 'acme', 'active', '2026-02-20T10:11:12.123456+00:00', '2026-03-01T00:00:00+00:00'),
	('twin-lower', 'twin@example.com', 'Name of twin-lower', '$2b$04$XtVAb6tds53Xji947oHJ2.bCkHSI/dZAKdq3QHx7rfcwua0MSdpiq',
		'viewer', 'acme', 'active', '2026-02-21T00:00:00+00:00', NULL),
	('pair-b', 'Pair@example.com', 'Name of pair-b', '$2b$04$FSmM3NZcvK0gdS0Ij7f4B.VuhtHHiCEL0rHDXpRiU/fBmoYKgMkEi',
		'viewer', 'acme', 'active', '2026-02-22T00:00:00+00:00', '2026-03-01T00:00:00+00:00'),
	('pair-a', 'PAIR@example.com', 'Name of pair-a', '$2b$04$RrhuT7l.aa7YgtUALQ82BeGn9sWMdWl50Q9nfT5rkOK8EZTwIJSqK',
		'viewer', 'acme', 'active', '2026-02-20T10:11:12.123456+00:00', NULL),
	('umlaut', 'jürgen@exämple.com', 'Name of umlaut', '$2b$04$oj7So4yS6sZ0wb3yzPIt1O8YgpivRtbpckxsvPfU/Fr.dM3osou.S',
		'viewer', 'acme', 'active', '2026-02-20T10:11:12.123456+00:00', '2026-03-01T00:00:00+00:00'),
	('UMLAUT', 'JÜRGEN@exämple.com', 'Name of UMLAUT', '$2b$04$aSh4Tn1mRyQkdkOSboXsMetRKN1GwmM4A4cnmdGA/WMLr7svqP5P2',
		'viewer', 'acme', 'active', '2026-02-20T10:11:12.123456+00:00', NULL),
	('none', '', 'Name of none', '$2b$04$V/c5VMz6SEi.M//3bCsEUOg/ekTEay26s.8.zU5HmqI45nri0yu2y',
		'viewer', 'acme', 'active', '2026-02-20T10:11:12.123456+00:00', '2026-03-01T00:00:00+00:00'),
	('blanks', '  with blanks ', 'Name of blanks', '$2b$04$V59sY7QugmIDH/0YBHpJO.oa9gH2te1ORUcGtbC5Vh.shV5cV7LW.',
		'viewer', 'acme', 'active', '2026-02-20T10:11:12.123456+00:00', NULL),
	('long', replace(hex(zeroblob(5000)), '0', 'l'), 'Name of long', '$2b$04$nHqtW2.cIX2uENHlV3TJEuMXywD/b.8rgjz0P.vgpzrajY1WAC6gy',
		'viewer', 'acme', 'active', '2026-02-20T10:11:12.123456+00:00', '2026-03-01T00:00:00+00:00'),
	('open', 'open@example.com', 'Name of open', '$2b$04$.GdAIqhPuexCFWvlD/ejm.aaVaK8ZWbD46CCwCzonAvhFhuVmURa.',
		'viewer', 'acme', 'active', '2026-02-20T10:11:12.123456+00:00', NULL),
	('shut', 'shut@example.com', 'Name of shut', '$2b$04$zDPzWB/3fnAJhaZitxdq3uugAMWGe4949LunIFmo2eE/7hGS/5Qq2',
		'viewer', 'acme', 'suspended', '2026-02-20T10:11:12.123456+00:00', '2026-03-01T00:00:00+00:00'),
	('odd', 'odd@example.com', 'Name of odd', '$2b$04$JgUSZTaWgcQWB3hEefvObecF4tzytsU/wTPSPfSFmtj/.kHYy6P8e',
		'auditor', 'acme', 'active', '2026-02-20T10:11:12.123456+00:00', NULL);
