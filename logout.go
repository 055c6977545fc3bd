package main

// This file is the logout of a browser (OpenID Connect RP-Initiated Logout
// 1.0): who may end whose session here without being asked, and where the
// browser goes afterwards.

import (
	"errors"
	"net/url"
)

const (
	logoutPath        = "/oauth2/logout"
	logoutConfirmPath = "/oauth2/logout/confirm"
)

// logoutRequest is a request to end the browser's session.
type logoutRequest struct {
	hint      idClaims    // of an id_token of ours; zero without one
	client    *oidcClient // whose user it is, as far as it is known
	returnURI string      // where to go afterwards; empty: nowhere
}

// logoutRequest reads the query. A URI that is not registered for the client is
// not used; the log says which setting would allow it.
func (s *server) logoutRequest(x *exchange) (l logoutRequest) {
	query := x.r.URL.Query()
	id := oneOf(query, "client_id")
	hint, err := s.idTokenHint(oneOf(query, "id_token_hint"))
	if err == nil && (id == "" || id == hint.Audience) {
		l.hint, id = hint, hint.Audience
	}
	l.client = s.cfg.clients[id]
	uri := oneOf(query, "post_logout_redirect_uri")
	switch {
	case uri == "" || l.client == nil:
	case registered(l.client.logoutURIs, uri):
		l.returnURI = uri
		if state := oneOf(query, "state"); state != "" {
			l.returnURI = withQuery(uri, url.Values{"state": {state}})
		}
	default:
		x.reason = "post_logout_redirect_uri " + cleanText(uri) + " is not in " +
			l.client.setting() + ".post_logout_redirect_uris"
	}
	return l
}

// handleLogoutPage logs a user out of the browser. A valid id_token shows that
// the request comes from a client of this user; without one the user is asked,
// because any page can send a browser here.
//
//	hint of           browser      what happens
//	its user          logged in    session ends, back to the client
//	anybody           nobody       the client's own session ends, back to it
//	another, or none  logged in    the user is asked
//	none              nobody       nothing
func (s *server) handleLogoutPage(x *exchange, _ principal) error {
	l := s.logoutRequest(x)
	b, err := s.browser(x)
	if err != nil {
		return err
	}
	if b.sessionID != "" && b.user.id != l.hint.Subject {
		return s.writePage(x, 200, page{
			Kind:   "logout",
			Title:  "Log out?",
			Action: s.formAction(logoutConfirmPath, x.r.URL.Query()),
			Email:  b.user.email,
		})
	}
	if l.hint.Subject == "" {
		// Nothing shows that a client sent this: a redirect would serve anybody
		// (RFC 9700 section 4.11).
		l.returnURI = ""
	}
	return s.logOutBrowser(x, b, l)
}

// handleLogoutPost turns a POST by a client into a GET, for the same reason as
// handleAuthorizePost.
func (s *server) handleLogoutPost(x *exchange, _ principal) error {
	form, err := readForm(x, maxBodyBytes)
	if err != nil {
		return err
	}
	return redirect(x, s.formAction(logoutPath, form))
}

// handleLogoutForm is the answer of a user who was asked.
func (s *server) handleLogoutForm(x *exchange, _ principal) error {
	if _, err := s.ownForm(x); err != nil {
		return err
	}
	b, err := s.browser(x)
	if err != nil {
		return err
	}
	return s.logOutBrowser(x, b, s.logoutRequest(x))
}

// logOutBrowser ends the browser's session, and that of the client that sent
// the hint, and shows or redirects to what comes next. A session is read before
// it is ended, so that old requests, sent again and again, never reach the
// writer.
func (s *server) logOutBrowser(x *exchange, b browser, l logoutRequest) error {
	var ended []session
	_, _, err := s.store.reads.userOfSession(l.hint.SessionID, l.hint.Audience)
	if err == nil || (errors.Is(err, errNoSession) && b.sessionID != "") {
		err = s.store.change(x.ctx, func(t *queries) error {
			own, err := t.endWhere(`id = $1 AND client_id = $2`, l.hint.SessionID, l.hint.Audience)
			if err != nil {
				return err
			}
			inBrowser, err := t.endWhere(oneSession, b.sessionID)
			ended = append(own, inBrowser...)
			return err
		})
	}
	if err != nil && !errors.Is(err, errNoSession) {
		return err
	}
	x.logEnded(ended, "logout")
	s.setCookie(x, "")
	if l.returnURI != "" {
		return redirect(x, l.returnURI)
	}
	return s.writePage(x, 200, page{
		Kind:  "text",
		Title: "You are logged out",
		Text:  "You can close this window.",
	})
}
