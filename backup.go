package main

// This file is about database files as a whole: how SQLite is told their
// names, who may read them, and how they are copied while others use them.

import (
	"cmp"
	"database/sql"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
)

// dsn is the data source name of a file. busy_timeout (10 s) comes first,
// because the other pragmas can already meet another process's lock.
func dsn(path string, pragmas ...string) string {
	file := url.URL{Path: filepath.ToSlash(path)}
	values := url.Values{"_pragma": append([]string{"busy_timeout(10000)"}, pragmas...)}
	return "file:" + file.EscapedPath() + "?" + values.Encode()
}

// makeFile makes an empty file with mode 0600; SQLite gives its side files the
// same. It opens no other: to close one that SQLite has open in this process
// would drop its locks (POSIX).
func makeFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = f.Close()
	}
	return err
}

// makePrivate takes the access of others to the database and its side files
// away, because they hold password hashes.
func makePrivate(path string, log *slog.Logger) error {
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm()&0o077 == 0 || runtime.GOOS == "windows" {
			continue
		}
		if err := os.Chmod(name, 0o600); err != nil {
			return err
		}
		log.Warn("others could read the database, which holds password hashes; its mode is 0600 now",
			"file", name, "was", info.Mode().Perm())
	}
	return nil
}

// copyDatabase writes a consistent copy, also while other processes change the
// database. The copy has no side files, is readable by its owner alone from the
// first byte, and is on the disk when this returns. to must not exist yet. It
// stays empty until the copy is complete, and on an error it is removed.
func copyDatabase(from, to string) error {
	if err := makeFile(to); err != nil {
		return err
	}
	aside := to + ".part"
	os.Remove(aside) // of a copy that was killed
	err := writeCopy(from, aside)
	if err == nil {
		err = synced(filepath.Dir(to), os.Rename(aside, to))
	}
	if err != nil {
		os.Remove(aside)
		os.Remove(to)
	}
	return err
}

// writeCopy uses that VACUUM INTO accepts a file which is there but empty.
func writeCopy(from, to string) error {
	if err := makeFile(to); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", dsn(from))
	if err != nil {
		return err
	}
	_, err = db.Exec(`VACUUM INTO $1`, to)
	if err = cmp.Or(err, db.Close()); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return cmp.Or(f.Sync(), f.Close())
}

// keepCopy copies the database to a file beside it and returns its name, which
// ends in suffix, or in suffix and a number: an earlier copy stays, because it
// may be the only one of something. The caller keeps others from writing.
func keepCopy(path, suffix string) (kept string, err error) {
	kept = path + suffix
	for n := 2; fileExists(kept); n++ {
		kept = fmt.Sprintf("%s%s-%d", path, suffix, n)
	}
	return kept, copyDatabase(path, kept)
}

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// synced makes a change of a directory durable, unless it failed with err.
// Windows cannot sync directories and need not.
func synced(directory string, err error) error {
	if err != nil || runtime.GOOS == "windows" {
		return err
	}
	dir, err := os.Open(directory)
	if err != nil {
		return err
	}
	return cmp.Or(dir.Sync(), dir.Close())
}
