package main

// This file reads the bodies of requests: JSON in the one way in which no two
// parsers can understand it differently, and forms. What a handler does not
// name reaches nothing.

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"
)

// --- JSON ---

// member is one member of a request body that a handler wants. Others are
// ignored, as the Python server ignores them: what no handler names reaches
// nothing (mass assignment).
type member struct {
	name     string
	required bool
	bare     bool // the value may be the whole body, as the Python server has it
	target   any  // *string, *bool, or **string, which stays nil when it is absent
}

func need[T string | bool](name string, target *T) member {
	return member{name: name, required: true, target: target}
}

func needOrBare(name string, target *string) member {
	return member{name: name, required: true, bare: true, target: target}
}

func maybe[T string | bool | *string](name string, target *T) member {
	return member{name: name, target: target}
}

// decode reads a JSON object into members. Names are compared exactly; null
// counts as absent.
func decode(x *exchange, members ...member) error {
	body, err := readJSON(x)
	if err != nil {
		return err
	}
	if members[0].bare && bytes.HasPrefix(bytes.TrimSpace(body), []byte(`"`)) {
		return members[0].set(body)
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(body, &object) != nil || object == nil {
		return errNotAnObject
	}
	for _, m := range members {
		raw := object[m.name]
		if raw == nil || string(raw) == "null" {
			if m.required {
				return invalidField(m.name, "is missing")
			}
		} else if err := m.set(raw); err != nil {
			return err
		}
	}
	return nil
}

// set stores one value if it has the right type; nothing is converted.
func (m member) set(raw json.RawMessage) error {
	if json.Unmarshal(raw, m.target) == nil {
		return nil
	}
	if _, isBool := m.target.(*bool); isBool {
		return invalidField(m.name, "must be true or false")
	}
	return invalidField(m.name, "must be a string")
}

// readBody returns a body of at most limit bytes.
func readBody(x *exchange, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(x, x.r.Body, limit))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, errBodyTooLarge
	}
	if err != nil {
		return nil, errBodyUnreadable.because(err)
	}
	return body, nil
}

// readJSON returns a body that checkJSON accepts. Insisting on the content
// type also keeps HTML forms of other sites from posting here: they cannot
// send this one.
func readJSON(x *exchange) ([]byte, error) {
	mediaType, params, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	charset := cmp.Or(params["charset"], "utf-8")
	if err != nil || mediaType != "application/json" || !strings.EqualFold(charset, "utf-8") {
		return nil, errMediaType
	}
	body, err := readBody(x, maxBodyBytes)
	if err != nil {
		return nil, err
	}
	if err := checkJSON(body); err != nil {
		return nil, refusal(400, "not_json", "The body is "+err.Error())
	}
	return body, nil
}

// errNotJSON is what checkJSON says of a syntax error. All its texts are fit
// for clients: they name the place and quote nothing.
var errNotJSON = errors.New("not valid JSON")

// checkJSON accepts one JSON document that no two parsers can read
// differently. Member names are unique, also when case is ignored (RFC 8259
// section 4 leaves duplicates open: Go takes the last, others the first, and
// that difference is an attack). No text holds U+FFFD: Go puts it in place of
// invalid UTF-8 and lone surrogates, which would make different texts equal.
func checkJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber() // 1e999 is JSON, though no float64
	if err := checkJSONValue(dec, 0); err != nil {
		return fmt.Errorf("%w, near byte %d", err, dec.InputOffset())
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("%w: text after the document, near byte %d", errNotJSON, dec.InputOffset())
	}
	return nil
}

// checkJSONValue consumes one value; depth counts what it is nested in.
func checkJSONValue(dec *json.Decoder, depth int) error {
	open, err := nextJSONToken(dec)
	inObject := open == json.Delim('{')
	if err != nil || (!inObject && open != json.Delim('[')) {
		return err
	}
	if depth >= maxJSONDepth {
		return errors.New("not valid JSON: nested too deep")
	}
	names := map[string]bool{}
	for dec.More() {
		if inObject {
			name, err := nextJSONToken(dec)
			if err != nil {
				return err
			}
			// encoding/json takes ſ for s and K (U+212A) for k, too.
			folded := strings.ToLower(strings.ToUpper(name.(string)))
			if names[folded] {
				return errors.New("not valid JSON: a member name occurs twice")
			}
			names[folded] = true
		}
		if err := checkJSONValue(dec, depth+1); err != nil {
			return err
		}
	}
	_, err = nextJSONToken(dec) // the closing delimiter
	return err
}

// nextJSONToken reads a token: a delimiter, a scalar, or a name, which the
// decoder makes sure is a string.
func nextJSONToken(dec *json.Decoder) (json.Token, error) {
	token, err := dec.Token()
	if err != nil {
		return nil, errNotJSON
	}
	if text, ok := token.(string); ok && strings.ContainsRune(text, utf8.RuneError) {
		return nil, errors.New("not valid JSON: text that is not Unicode, or U+FFFD")
	}
	return token, nil
}

// --- forms ---

// badRequest is the error of a request that is not in the form of its standard.
func badRequest(detail string) error { return refusal(400, "invalid_request", detail) }

// isStorable reports whether every database takes this as a text.
func isStorable(v string) bool { return utf8.ValidString(v) && !strings.ContainsRune(v, 0) }

// readForm reads the form of a request (RFC 6749 appendix B). A parameter that
// occurs twice is refused in all of them (section 3.2).
func readForm(x *exchange, limit int64) (url.Values, error) {
	kind, _, _ := strings.Cut(x.r.Header.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(kind), "application/x-www-form-urlencoded") {
		return nil, badRequest("send a form: application/x-www-form-urlencoded")
	}
	body, err := readBody(x, limit)
	if err != nil {
		return nil, badRequest(answerTo(err).detail)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, badRequest("the form is not well encoded")
	}
	for _, values := range form {
		if len(values) > 1 {
			return nil, badRequest("a parameter occurs more than once")
		}
		if !isStorable(values[0]) {
			return nil, badRequest("a parameter is not text")
		}
	}
	return form, nil
}
