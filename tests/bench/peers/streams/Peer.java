// A peer: the same work in Kafka Streams, exactly_once_v2, the way its tutorials write it: consents are a KTable, events
// a KStream, and a join of the two decides. Arguments are pairs: --bootstrap H:P --group G --raw T --consents T --out T
// --key-file F --state-dir D --session-timeout-ms N, and two that change how the join sees time:
//   --consent-time record|zero   the consents' own timestamps, or 0 for each, so that they come before any event
//   --max-task-idle-ms N         how long a task waits for the other side when one has no record

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.time.Duration;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;

public final class Peer {
    private static final String PURPOSE = "personalization.recommendations";
    private static final ObjectMapper JSON = new ObjectMapper();
    private final SecretKeySpec secret;

    private Peer(byte[] key) {
        secret = new SecretKeySpec(key, "HmacSHA256");
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = new HashMap<>();
        for (int i = 0; i < arguments.length; i += 2) {
            options.put(arguments[i].substring(2), arguments[i + 1]);
        }
        Peer peer = new Peer(Files.readAllBytes(Path.of(options.get("key-file"))));
        KafkaStreams streams = new KafkaStreams(peer.topology(options).build(), settings(options));
        streams.setUncaughtExceptionHandler(error -> StreamThreadExceptionResponse.REPLACE_THREAD);
        CountDownLatch ended = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            streams.close(Duration.ofSeconds(20));
            ended.countDown();
        }));
        streams.start();
        ended.await();
    }

    private static Properties settings(Map<String, String> options) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, options.get("group"));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, options.get("bootstrap"));
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, options.get("state-dir"));
        settings.put(StreamsConfig.MAX_TASK_IDLE_MS_CONFIG, options.getOrDefault("max-task-idle-ms", "0"));
        int session = Integer.parseInt(options.getOrDefault("session-timeout-ms", "45000"));
        settings.put(StreamsConfig.consumerPrefix("session.timeout.ms"), session);
        settings.put(StreamsConfig.consumerPrefix("heartbeat.interval.ms"), session / 3);
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        return settings;
    }

    private StreamsBuilder topology(Map<String, String> options) {
        StreamsBuilder builder = new StreamsBuilder();
        Consumed<String, byte[]> events = Consumed.with(Serdes.String(), Serdes.ByteArray());
        Consumed<String, byte[]> consents = Consumed.with(Serdes.String(), Serdes.ByteArray());
        if (options.getOrDefault("consent-time", "record").equals("zero")) {
            consents = consents.withTimestampExtractor((record, before) -> 0L);
        }
        builder.stream(options.get("raw"), events)
            .join(builder.table(options.get("consents"), consents), this::minimized)
            .filter((customer, published) -> published != null)
            .map((customer, published) -> KeyValue.pair(pseudonym(customer), published))
            .mapValues((pseudonym, published) -> bytes(published.put("subject", pseudonym)))
            .to(options.get("out"), Produced.with(Serdes.String(), Serdes.ByteArray()));
        return builder;
    }

    private ObjectNode minimized(byte[] eventValue, byte[] consentValue) {
        JsonNode event = document(eventValue);
        JsonNode grant = document(consentValue).path("purposes").path(PURPOSE);
        Instant when = Instant.parse(event.get("occurred_at").asText());
        if (!grant.path("rung").asText().equals("pseudonymous")
                || when.isBefore(Instant.parse(grant.get("since").asText()))) {
            return null;
        }
        ObjectNode published = JSON.createObjectNode();
        published.set("event_id", event.get("event_id"));
        published.put("occurred_at", when.truncatedTo(ChronoUnit.HOURS).toString());
        ObjectNode bought = published.putObject("properties");
        bought.set("product_id", event.get("properties").get("product_id"));
        bought.set("category", event.get("properties").get("category"));
        bought.put("price", Math.round(event.get("properties").get("price").asDouble() / 10) * 10);
        String ip = event.get("context").get("ip").asText();
        published.putObject("context").put("ip", ip.substring(0, ip.lastIndexOf('.')) + ".0");
        return published;
    }

    private String pseudonym(String customer) {
        try {
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(secret);
            return HexFormat.of().formatHex(mac.doFinal(customer.getBytes(StandardCharsets.UTF_8)));
        } catch (GeneralSecurityException error) {
            throw new IllegalStateException(error);
        }
    }

    private static JsonNode document(byte[] value) {
        try {
            return JSON.readTree(value);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    private static byte[] bytes(ObjectNode value) {
        try {
            return JSON.writeValueAsBytes(value);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }
}
