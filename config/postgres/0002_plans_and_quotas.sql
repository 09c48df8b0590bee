-- How much a project may send, and how much it has sent.

-- NULL is no limit of the month's records, and the gateway's own rate.
CREATE TABLE plans (
    name                text    PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    monthly_records     bigint  CHECK (monthly_records > 0),
    requests_per_minute integer CHECK (requests_per_minute > 0)
);

INSERT INTO plans (name) VALUES ('unlimited');

-- What is set here goes before what the plan says.
ALTER TABLE projects
    ADD COLUMN plan            text    NOT NULL DEFAULT 'unlimited' REFERENCES plans (name),
    ADD COLUMN monthly_records bigint  CHECK (monthly_records > 0),
    ADD COLUMN active          boolean NOT NULL DEFAULT true;

ALTER TABLE keys ADD COLUMN requests_per_minute integer CHECK (requests_per_minute > 0);

-- A key carries what its project and its plan allow.
CREATE TRIGGER key_change AFTER UPDATE OR DELETE OR TRUNCATE ON plans
    FOR EACH STATEMENT EXECUTE FUNCTION count_key_change();

-- What each gateway process has counted in a month, and its lease: records it may still accept
-- without asking again. usage.records is the sum of what all of them have ever told.
CREATE TABLE usage_shares (
    project_id uuid        NOT NULL REFERENCES projects (id),
    month      date        NOT NULL,
    instance   uuid        NOT NULL,
    used       bigint      NOT NULL,
    leased     bigint      NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (project_id, month, instance)
);

-- Adds what an instance has counted since it last told, takes back its lease and gives it a new one.
-- Counts are told as sums since the instance began, so that telling the same twice adds nothing:
-- whoever got no answer just asks again. last_settled is the last sum that was answered, for an
-- instance whose row has been cleared away. No row comes back for a project that is not there.
CREATE FUNCTION settle_usage(
    of_project uuid, of_month date, by_instance uuid, now_used bigint, last_settled bigint,
    quota bigint, wanted bigint, lease_for interval
) RETURNS TABLE (total bigint, lease bigint, is_last boolean) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    added    bigint;
    unleased bigint;
BEGIN
    INSERT INTO usage (project_id, month) SELECT id, of_month FROM projects WHERE id = of_project
        ON CONFLICT DO NOTHING;
    -- From here on instances take turns, and each statement sees what the turn before has committed.
    PERFORM FROM usage WHERE project_id = of_project AND month = of_month FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT greatest(0, now_used - coalesce(max(used), last_settled)) INTO added FROM usage_shares
        WHERE project_id = of_project AND month = of_month AND instance = by_instance;
    UPDATE usage SET records = records + added WHERE project_id = of_project AND month = of_month
        RETURNING records INTO total;
    -- A process that died keeps its lease from the others until it expires.
    SELECT quota - total - coalesce(sum(leased), 0) INTO unleased FROM usage_shares
        WHERE project_id = of_project AND month = of_month AND instance <> by_instance
        AND expires_at > clock_timestamp();
    lease := CASE WHEN quota IS NULL THEN 0 ELSE least(wanted, greatest(0, unleased)) END;
    is_last := coalesce(lease >= unleased, false);
    INSERT INTO usage_shares (project_id, month, instance, used, leased, expires_at)
        VALUES (of_project, of_month, by_instance, now_used, lease, clock_timestamp() + lease_for)
        ON CONFLICT (project_id, month, instance) DO UPDATE
        SET used = greatest(usage_shares.used, EXCLUDED.used), leased = EXCLUDED.leased,
            expires_at = EXCLUDED.expires_at;
    DELETE FROM usage_shares WHERE project_id = of_project AND expires_at < clock_timestamp() - interval '1 day';
    RETURN NEXT;
END;
$$;
