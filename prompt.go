package main

// This file asks the person at the terminal: for a new password, which is not
// shown while it is typed, and for a word before what cannot be undone.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

// terminalOf returns standard input if a person may type there, and nil if it
// is a pipe, a file or /dev/null.
func terminalOf(stdin io.Reader) *os.File {
	in, isFile := stdin.(*os.File)
	if !isFile {
		return nil
	}
	info, err := in.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return nil
	}
	if null, err := os.Stat(os.DevNull); err == nil && os.SameFile(info, null) {
		return nil
	}
	return in
}

// askPassword asks twice, so that a slip of the finger locks nobody out.
// Whatever ends it, signals among them, the terminal shows what is typed again.
func askPassword(ctx context.Context, in *os.File, out io.Writer) (string, error) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := setEcho(in, "-echo"); err != nil {
		fmt.Fprintln(out, "the password is shown as you type, because stty does not work here")
	} else {
		defer setEcho(in, "echo")
	}
	lines := bufio.NewReader(in)
	password, err := askLine(ctx, lines, out, "new password: ")
	if err != nil {
		return "", err
	}
	again, err := askLine(ctx, lines, out, "the same again: ")
	if err == nil && password != again {
		err = errors.New("the two passwords differ; nothing was changed")
	}
	return password, err
}

// setEcho tells the terminal whether to show what is typed.
func setEcho(in *os.File, mode string) error {
	stty := exec.Command("stty", mode)
	stty.Stdin = in
	return stty.Run()
}

// askLine puts a question and reads a line, unless ctx ends before. Then its
// reading goes on until the process ends.
func askLine(ctx context.Context, lines *bufio.Reader, out io.Writer, question string) (string, error) {
	fmt.Fprint(out, question)
	defer fmt.Fprintln(out) // the line break that was typed is not shown
	answer, done := "", make(chan error, 1)
	go func() {
		var err error
		answer, err = readLine(lines)
		done <- err
	}()
	select {
	case err := <-done:
		return answer, err
	case <-ctx.Done():
		return "", errors.New("interrupted; nothing was changed")
	}
}

// readLine reads a line without its end. The last one may have none.
func readLine(lines *bufio.Reader) (string, error) {
	line, err := lines.ReadString('\n')
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return strings.TrimRight(line, "\r\n"), err
}
