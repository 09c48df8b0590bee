-- What a 2xx means for a project's rows: NULL is what the gateway's settings say (delivery.durability).
ALTER TABLE projects ADD COLUMN durability text CHECK (durability IN ('memory', 'os', 'disk', 'stored'));
