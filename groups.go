package main

// This file is groups: what is stored of them, their endpoints and their
// commands of the shell. A group and its members belong to one organisation.
// Other services read the ids of a user's groups in its access token; here a
// group gives no right to anything. Each change is decided inside the
// transaction that makes it, on what is stored then. Without this file and the
// lines marked `room: groups` there are no groups.

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// maxGroups is in how many groups a user may be: each makes the user's access
// tokens longer.
const maxGroups = 100

// --- what is stored ---

// group is a row of groups, as it is stored and shown.
type group struct {
	seq         int64
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
	OrgID       string `json:"org_id"`
}

const groupColumns = `seq, id, name, description, org_id`

// groupTargets are the scan targets for groupColumns.
func groupTargets(g *group) []any {
	return []any{&g.seq, &g.ID, &g.Name, &g.Description, &g.OrgID}
}

// groupFor returns a group if it exists as far as the actor can know, or the
// answer that it does not.
func (t *queries) groupFor(actor user, id string) (g group, err error) {
	err = t.get(`SELECT `+groupColumns+` FROM groups WHERE id = $1`, []any{id}, groupTargets(&g)...)
	if errors.Is(err, errNotFound) || (err == nil && !mayReadOrg(actor, g.OrgID)) {
		err = refusal(404, "group_not_found", "Group not found: "+id)
	}
	return g, err
}

// groupsWhere is the list of the groups of the organisations that f names.
func groupsWhere(f userFilter) rowList[group] {
	where, args := f.where()
	return rowList[group]{"groups", groupColumns, where, args, groupTargets}
}

// groupMember is a row of group_members, as it is stored and shown.
type groupMember struct {
	seq      int64
	UserID   string   `json:"user_id"`
	JoinedAt unixTime `json:"joined_at"`
}

// membersOf is the list of the members of a group; of no group it is empty.
func membersOf(groupID string) rowList[groupMember] {
	return rowList[groupMember]{
		table:   "group_members",
		columns: "seq, user_id, joined_at",
		where:   " AND group_id = $1",
		args:    []any{groupID},
		targets: func(m *groupMember) []any { return []any{&m.seq, &m.UserID, &m.JoinedAt} },
	}
}

// --- reading ---

// handleListGroups writes the groups of the caller's organisation; to a
// superadmin those of all, or of the one that ?org_id= names.
func (s *server) handleListGroups(x *exchange, p principal) error {
	filter, q := userFilter{everyOrg: p.role == superadmin, orgID: p.orgID}, x.r.URL.Query()
	if filter.everyOrg && q.Has("org_id") {
		filter = userFilter{orgID: q.Get("org_id")}
	}
	return streamList(x, `{"groups":[`, groupsWhere(filter), asIs, "org_id")
}

// handleGetGroup shows a group and, to admins and to its members, who is in
// it. The list of everybody else is empty.
func (s *server) handleGetGroup(x *exchange, p principal) error {
	g, err := s.store.reads.groupFor(p.user, x.r.PathValue("id"))
	if err != nil {
		return err
	}
	members := membersOf("")
	if allows(p.role, permUsersRead) || p.isIn(g.ID) {
		members = membersOf(g.ID)
	}
	head, _ := json.Marshal(g) // texts only: cannot fail
	return streamList(x, strings.TrimSuffix(string(head), "}")+`,"members":[`, members, asIs)
}

// --- changing ---

// groupChange changes a group inside a transaction, or refuses the actor.
type groupChange func(t *queries, actor user, g *group) error

// editGroup runs a change of the caller's target after the rules that hold for
// all of them, and returns the group as the change left it.
func (s *server) editGroup(c caller, change groupChange) (g group, err error) {
	err = s.store.changeBy(c.ctx, c.by, func(t *queries, actor user) (err error) {
		if err = c.recheck(actor); err != nil {
			return err
		}
		if g, err = t.groupFor(actor, c.target); err != nil {
			return err
		}
		return change(t, actor, &g)
	})
	return g, err
}

// checkGroup checks what is to be stored of a group; nil is what stays as it
// is, because adopted groups can have other names.
func checkGroup(name, description *string) error {
	if name != nil {
		if err := checkTag(*name); err != nil {
			return invalidField("name", err.Error())
		}
	}
	if description != nil {
		return checkDescription(*description)
	}
	return nil
}

// groupNameTaken gives a conflict of names its answer.
func groupNameTaken(err error, name string) error {
	if errors.Is(err, errConflict) {
		err = refusal(409, "group_exists", "Group already exists: "+name)
	}
	return err
}

// handleCreateGroup makes a group of the caller's organisation, or for a
// superadmin of any.
func (s *server) handleCreateGroup(x *exchange, p principal) error {
	g := group{OrgID: p.orgID}
	err := decode(x,
		need("name", &g.Name),
		maybe("description", &g.Description),
		maybe("org_id", &g.OrgID))
	if err != nil {
		return err
	}
	if g, err = s.createGroup(x.caller(p), g); err != nil {
		return err
	}
	return writeJSON(x, struct {
		membership
		OrgID string `json:"org_id"`
	}{membership{g.ID, g.Name}, g.OrgID})
}

// createGroup stores a new group. An organisation needs a name of today's form
// unless it is the caller's own, which may have been adopted.
func (s *server) createGroup(c caller, g group) (group, error) {
	err := checkGroup(&g.Name, &g.Description)
	if err == nil && g.OrgID != c.by.orgID {
		err = checkOrg(g.OrgID)
	}
	if err != nil {
		return g, err
	}
	g.ID = newID()
	err = s.store.changeBy(c.ctx, c.by, func(t *queries, actor user) error {
		if err := c.recheck(actor); err != nil {
			return err
		}
		if !mayReadOrg(actor, g.OrgID) {
			return forbidden("You may not create groups in this organisation")
		}
		_, err := t.exec(`INSERT INTO groups (id, name, description, org_id, created_at)
			VALUES ($1, $2, $3, $4, $5)`, g.ID, g.Name, g.Description, g.OrgID, s.now().Unix())
		return groupNameTaken(err, g.Name)
	})
	if err == nil {
		c.event("group.created",
			"group", g.ID, "name", g.Name, "org", g.OrgID, "actor", c.by.id)
	}
	return g, err
}

// handleChangeGroup sets the name or the description or both; what is absent
// stays.
func (s *server) handleChangeGroup(x *exchange, p principal) error {
	var name, description *string
	err := decode(x,
		maybe("name", &name),
		maybe("description", &description))
	if err == nil {
		err = checkGroup(name, description)
	}
	if err != nil {
		return err
	}
	c := x.caller(p)
	g, err := s.editGroup(c, func(t *queries, _ user, g *group) error {
		if name != nil {
			g.Name = *name
		}
		if description != nil {
			g.Description = *description
		}
		_, err := t.exec(`UPDATE groups SET name = $1, description = $2 WHERE id = $3`,
			g.Name, g.Description, g.ID)
		return groupNameTaken(err, g.Name)
	})
	if err != nil {
		return err
	}
	c.event("group.changed", "group", g.ID, "name", g.Name, "actor", p.id)
	return writeJSON(x, struct {
		membership
		Description string `json:"description"`
	}{membership{g.ID, g.Name}, g.Description})
}

// handleDeleteGroup removes a group and all memberships in it.
func (s *server) handleDeleteGroup(x *exchange, p principal) error {
	if _, err := s.deleteGroup(x.caller(p)); err != nil {
		return err
	}
	return writeMessage(x, "Group deleted")
}

// deleteStep is how many members one change removes. Those of a group of
// 100,000, removed at once, kept other changes waiting for 0.8 s.
const deleteStep = 2000

// deleteGroup removes the members first, in several changes, each of which
// asks for the permission again; the last one removes the group. When it does
// not come to that, the group is there with fewer members.
func (s *server) deleteGroup(c caller) (g group, err error) {
	for removed := int64(deleteStep); removed == deleteStep && err == nil; {
		g, err = s.editGroup(c, func(t *queries, _ user, g *group) (err error) {
			removed, err = t.exec(`DELETE FROM group_members WHERE seq IN
				(SELECT seq FROM group_members WHERE group_id = $1 ORDER BY seq LIMIT $2)`, g.ID, deleteStep)
			if err == nil && removed < deleteStep {
				_, err = t.exec(`DELETE FROM groups WHERE id = $1`, g.ID)
			}
			return err
		})
	}
	if err == nil {
		c.event("group.deleted", "group", g.ID, "name", g.Name, "actor", c.by.id)
	}
	return g, err
}

// --- members ---

// handleJoinGroup takes the id of the user as an object or a bare string.
func (s *server) handleJoinGroup(x *exchange, p principal) error {
	var userID string
	if err := decode(x, needOrBare("user_id", &userID)); err != nil {
		return err
	}
	if err := s.joinGroup(x.caller(p), userID); err != nil {
		return err
	}
	return writeMessage(x, "Member added")
}

// joinGroup adds a user of the group's organisation whom the actor may change:
// an org_admin changes no superadmin's groups.
func (s *server) joinGroup(c caller, userID string) error {
	g, err := s.editGroup(c, func(t *queries, actor user, g *group) error {
		u, err := t.userWhere(`id = $1`, userID)
		switch {
		case errors.Is(err, errNotFound) || (err == nil && u.orgID != g.OrgID):
			return userNotFound(userID)
		case err != nil:
			return err
		case !mayEditUser(actor, u):
			return forbidden("You may not change this user")
		case u.isIn(g.ID):
			return refusal(409, "member_exists", "User "+userID+" is already in group "+g.ID)
		case len(u.memberships()) >= maxGroups:
			return refusal(409, "too_many_groups",
				fmt.Sprintf("User %s is in %d groups already", userID, maxGroups))
		}
		_, err = t.exec(`INSERT INTO group_members (group_id, user_id, joined_at) VALUES ($1, $2, $3)`,
			g.ID, userID, s.now().Unix())
		return err
	})
	if err == nil {
		c.event("group.member_added", "group", g.ID, "user", userID, "actor", c.by.id)
	}
	return err
}

// handleLeaveGroup removes the user that the path names.
func (s *server) handleLeaveGroup(x *exchange, p principal) error {
	if err := s.leaveGroup(x.caller(p), x.r.PathValue("user")); err != nil {
		return err
	}
	return writeMessage(x, "Member removed")
}

// leaveGroup removes a member whom the actor may change.
func (s *server) leaveGroup(c caller, userID string) error {
	g, err := s.editGroup(c, func(t *queries, actor user, g *group) error {
		u, err := t.userWhere(`id = $1`, userID)
		switch {
		case errors.Is(err, errNotFound) || (err == nil && !u.isIn(g.ID)):
			return refusal(404, "member_not_found", "User "+userID+" is not in group "+g.ID)
		case err != nil:
			return err
		case !mayEditUser(actor, u):
			return forbidden("You may not change this user")
		}
		_, err = t.exec(`DELETE FROM group_members WHERE group_id = $1 AND user_id = $2`, g.ID, userID)
		return err
	})
	if err == nil {
		c.event("group.member_removed", "group", g.ID, "user", userID, "actor", c.by.id)
	}
	return err
}

// --- in the shell ---

const groupUsage = `usage:
  pico-auth group list [--org ORG] [--json]
  pico-auth group add NAME [--org ORG] [--description TEXT] [--json]
  pico-auth group show GROUP [--org ORG] [--json]     its members
  pico-auth group delete GROUP [--org ORG]
  pico-auth group join GROUP EMAIL|ID [--org ORG]
  pico-auth group leave GROUP EMAIL|ID [--org ORG]

GROUP is the id, as the list shows it and access tokens carry it, or the name if
only one group has it; --org ORG looks in one organisation.`

// printGroup prints one line about a group.
func (c shellCall) printGroup(g group) { c.print(g, g.ID, g.OrgID, g.Name, g.Description) }

func shellGroupList(s *server, c shellCall) error {
	c.print(nil, "ID", "ORG", "NAME", "DESCRIPTION")
	return groupsWhere(userFilter{everyOrg: c.org == "", orgID: c.org}).each(s.store.reads, c.printGroup)
}

func shellGroupAdd(s *server, c shellCall) error {
	g, err := s.createGroup(c.caller, group{
		Name:        c.words[0],
		Description: c.description,
		OrgID:       cmp.Or(c.org, defaultOrg),
	})
	if err == nil {
		c.printGroup(g)
	}
	return err
}

// findGroup makes the group that the first word names the target.
func (c *shellCall) findGroup(s *server) error {
	list := groupsWhere(userFilter{everyOrg: c.org == "", orgID: c.org})
	list.args = append(list.args, c.words[0])
	list.where += fmt.Sprintf(" AND $%d IN (id, name)", len(list.args))
	found, err := list.page(s.store.reads, 0, 2)
	switch {
	case err != nil:
		return err
	case len(found) == 0:
		return refusal(404, "group_not_found", "Group not found: "+c.words[0])
	case len(found) > 1:
		return errors.New("several groups are called " + c.words[0] + "; give the id of one, or --org")
	}
	c.target = found[0].ID
	return nil
}

// shellGroupShow prints who is in a group.
func shellGroupShow(s *server, c shellCall) error {
	if err := c.findGroup(s); err != nil {
		return err
	}
	c.print(nil, "JOINED", "EMAIL", "ID")
	return membersOf(c.target).each(s.store.reads, func(m groupMember) {
		u, _ := s.store.userByID(m.UserID) // may be gone since
		c.print(m, m.JoinedAt.String(), u.email, m.UserID)
	})
}

func shellGroupDelete(s *server, c shellCall) error {
	if err := c.findGroup(s); err != nil {
		return err
	}
	g, err := s.deleteGroup(c.caller)
	if err == nil {
		c.printGroup(g)
	}
	return err
}

func shellGroupJoin(s *server, c shellCall) error { return c.onMember(s, s.joinGroup) }

func shellGroupLeave(s *server, c shellCall) error { return c.onMember(s, s.leaveGroup) }

// onMember runs a change of the group and the user that the words name.
func (c shellCall) onMember(s *server, change func(caller, string) error) error {
	if err := c.findGroup(s); err != nil {
		return err
	}
	u, err := s.store.userNamed(c.words[1])
	if errors.Is(err, errNotFound) {
		return userNotFound(c.words[1])
	}
	if err != nil {
		return err
	}
	return change(c.caller, u.id)
}
