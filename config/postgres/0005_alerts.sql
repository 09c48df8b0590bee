-- What people want to be told of. All conditions of an alert must hold; an empty one always does.
CREATE TABLE alerts (
    id            integer     PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    project_id    uuid        NOT NULL REFERENCES projects (id),
    name          text        NOT NULL,
    -- trace debug info warn error fatal; heartbeat alone is an alert on absence.
    levels        text[]      NOT NULL DEFAULT '{}',
    contains      text        NOT NULL DEFAULT '',
    context_key   text        NOT NULL DEFAULT '',
    context_value text        NOT NULL DEFAULT '',
    timeout_s     integer     CHECK (timeout_s > 0),
    cooldown_s    integer     NOT NULL CHECK (cooldown_s > 0),
    webhook_url   text        NOT NULL,
    enabled       boolean     NOT NULL DEFAULT true,
    created_at    timestamptz NOT NULL DEFAULT now(),
    -- Whoever changes it from what it has seen has fired the alert; nobody else has.
    last_fired_at timestamptz,
    last_outcome  text        NOT NULL DEFAULT '',
    CHECK ((timeout_s IS NOT NULL) = (levels = '{heartbeat}')),
    CHECK ((context_key = '') = (context_value = ''))
);

CREATE INDEX alerts_of_a_project ON alerts (project_id);

-- Which gateway process evaluates the alerts, until when, unless it says so again before.
CREATE TABLE alert_watch (
    only_row   boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    instance   uuid        NOT NULL,
    expires_at timestamptz NOT NULL
);
