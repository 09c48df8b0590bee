-- The control plane: who may send, and what they have defined. Never a secret, never a record.

CREATE TABLE projects (
    id         uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    slug       text        NOT NULL UNIQUE CHECK (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    name       text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A revoked key keeps its row: an empty table then means a lost table, and is not obeyed.
-- dialect is free text: a new dialect is a file in the gateway, not a migration.
CREATE TABLE keys (
    id         uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id uuid        NOT NULL REFERENCES projects (id),
    sha256     bytea       NOT NULL UNIQUE CHECK (octet_length(sha256) = 32),
    kind       text        NOT NULL CHECK (kind IN ('server', 'browser')),
    dialect    text        NOT NULL,
    name       text        NOT NULL,
    origins    text[]      NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz,
    CHECK ((kind = 'browser') = (cardinality(origins) > 0))
);

CREATE INDEX keys_of_a_project ON keys (project_id);

-- Account-wide tokens of people, for the query and control API.
CREATE TABLE personal_access_tokens (
    id         uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    sha256     bytea       NOT NULL UNIQUE CHECK (octet_length(sha256) = 32),
    name       text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);

-- Counts the changes that concern keys. A row and not a sequence: nextval() is seen before its
-- transaction commits, so a reader could remember a number whose keys it has not seen. The row's
-- lock also makes numbers follow the order of commits.
CREATE TABLE key_changes (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    number   bigint  NOT NULL
);

INSERT INTO key_changes (number) VALUES (1);

CREATE FUNCTION count_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    new_number bigint;
BEGIN
    UPDATE key_changes SET number = number + 1 RETURNING number INTO new_number;
    PERFORM pg_notify('weir_key_changes', new_number::text);
    RETURN NULL;
END;
$$;

CREATE TRIGGER key_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON keys
    FOR EACH STATEMENT EXECUTE FUNCTION count_key_change();

-- A key carries its project's slug.
CREATE TRIGGER key_change AFTER UPDATE OR DELETE OR TRUNCATE ON projects
    FOR EACH STATEMENT EXECUTE FUNCTION count_key_change();

-- Typed event tables. Without a schema a dataset is pending; a schema is set once.
CREATE TABLE datasets (
    id          integer     PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    project_id  uuid        NOT NULL REFERENCES projects (id),
    slug        text        NOT NULL,
    name        text        NOT NULL,
    description text        NOT NULL DEFAULT '',
    is_default  boolean     NOT NULL DEFAULT false,
    schema      jsonb,
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project_id, slug)
);

CREATE UNIQUE INDEX one_default_dataset ON datasets (project_id) WHERE is_default;

-- What each project sent in each calendar month (UTC), for quotas. Plans follow with the quotas.
CREATE TABLE usage (
    project_id uuid   NOT NULL REFERENCES projects (id),
    month      date   NOT NULL CHECK (extract(day FROM month) = 1),
    records    bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (project_id, month)
);
