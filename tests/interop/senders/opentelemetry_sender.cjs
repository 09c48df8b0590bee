// Logs by OpenTelemetry's packages from npm; NODE_PATH says where they are. A task in, a report out.
"use strict";

const { diag, DiagLogLevel } = require("@opentelemetry/api");
const { resourceFromAttributes } = require("@opentelemetry/resources");
const { BatchLogRecordProcessor, LoggerProvider } = require("@opentelemetry/sdk-logs");

// flushEvery: below the 2,048 records that the processor holds; more are dropped.
const SEVERITIES = [[5, "DEBUG"], [9, "INFO"], [13, "WARN"], [17, "ERROR"], [21, "FATAL"]];

async function main() {
  const task = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
  const complaints = [];
  const complain = (...words) => complaints.push(words.map((word) => word.stack ?? String(word)).join(" "));
  const quiet = () => {};
  diag.setLogger({ error: complain, warn: complain, info: quiet, debug: quiet, verbose: quiet }, DiagLogLevel.WARN);

  const { OTLPLogExporter } = require(`@opentelemetry/exporter-logs-otlp-${task.encoding}`);
  const exporter = new OTLPLogExporter({
    url: `${task.url}/v1/logs`, headers: { "x-api-key": task.key }, compression: task.compression, timeoutMillis: 8000,
  });
  const exported = [];
  const provider = new LoggerProvider({
    resource: resourceFromAttributes({ "service.name": "interop-node", "service.version": "4.5" }),
    processors: [new BatchLogRecordProcessor({ exporter: {
      export: (records, done) => exporter.export(records, (result) => { exported.push(result.code); done(result); }),
      forceFlush: () => exporter.forceFlush(), shutdown: () => exporter.shutdown(),
    } })],
  });
  const logger = provider.getLogger("interop", "1.2.3");
  for (let number = 0; number < task.count; number++) {
    const [severityNumber, severityText] = SEVERITIES[number % 5];
    logger.emit({
      timestamp: [1_700_000_000, number], severityNumber, severityText, body: `record ${number} ✓`,
      attributes: { number, price: number / 4, paid: number % 2 === 0, tags: ["a", String(number)], deep: { er: [1, null] } },
    });
    if (number % task.flushEvery === task.flushEvery - 1) await provider.forceFlush();
  }
  await provider.forceFlush();
  await provider.shutdown();
  console.log(JSON.stringify({ complaints, exported }));
}

main();
