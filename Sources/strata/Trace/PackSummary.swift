// The result of a packing: events kept, lines dropped and why. It goes to standard error, since standard output may be
// the packed trace.

import Workloads

/// The counts of events kept and dropped, with reasons.
struct PackSummary {
  let packer: TracePacker
  let counts: TraceCounts
  let size: Int
  let source: String
  let output: String

  init(_ packer: TracePacker, _ packed: [UInt8], from source: String, to output: String) {
    self.packer = packer
    counts = packed.withUnsafeBytes { (try? PackedTrace($0))?.counts ?? TraceCounts() }
    size = packed.count
    self.source = source
    self.output = output
  }

  var text: String {
    var lines = ["event                   kept"]
    var rows = (0..<TraceKind.count).compactMap { TraceKind(rawValue: UInt8($0)) }
    rows.sort { packer.eventsByKind[Int($0.rawValue)] > packer.eventsByKind[Int($1.rawValue)] }
    for kind in rows where packer.eventsByKind[Int(kind.rawValue)] > 0 {
      lines.append("\(kind.description)".left(20) + grouped(packer.eventsByKind[Int(kind.rawValue)]).right(8))
    }
    lines.append("all events".left(20) + grouped(counts.events).right(8))
    lines += notes
    let learned = packer.learned
    if counts.caches > 0 {
      var ways: [String] = []
      if learned.byPointer > 0 { ways.append("\(grouped(learned.byPointer)) by their own free") }
      if learned.bySite > 0 { ways.append("\(grouped(learned.bySite)) by their call site") }
      if learned.bySize > 0 { ways.append("\(grouped(learned.bySize)) by their sizes") }
      if learned.unknown > 0 { ways.append("\(grouped(learned.unknown)) not (named after the caller)") }
      lines.append("Caches: \(counts.caches); allocations found " + ways.joined(separator: ", ") + ".")
    }
    lines.append(
      "Live at most \(grouped(counts.peakObjects)) of \(grouped(counts.objects)) objects "
        + "(\(grouped(counts.peakBytes)) bytes) and \(grouped(counts.peakPages)) of \(grouped(counts.pages)) frames."
    )
    let each = Double(size) / Double(max(1, counts.events))
    lines.append(
      "\(source), \(grouped(packer.bytes)) bytes of text, is now \(output), \(grouped(size)) bytes: "
        + String(format: "%.1f an event.", each))
    return lines.joined(separator: "\n") + "\n"
  }

  /// Requests that failed, lines that were dropped, and events that the recorder lost.
  private var notes: [String] {
    var lines: [String] = []
    let (dropped, failed) = (packer.dropped, packer.failedRequests)
    if failed > 0 || packer.nullFrees > 0 {
      lines.append(
        "Of them \(counted(failed, "failed request")) and \(counted(packer.nullFrees, "free")) of a null pointer."
      )
    }
    if !reasons.isEmpty { lines.append("Dropped: " + reasons.joined(separator: ", ") + ".") }
    if dropped.lost > 0 {
      let lost = (dropped.lostMore ? "at least " : "") + counted(dropped.lost, "event")
      lines.append(
        "! The recorder lost \(lost): record with a larger buffer (ftrace: buffer_size_kb).")
    }
    if dropped.overwritten > 0 {
      lines.append(
        "! The recorder overwrote \(counted(dropped.overwritten, "event")) before the first that is left.")
    }
    if dropped.hiddenPointers > 0 {
      lines.append("! The kernel hid pointers as (ptrval): record later after its boot.")
    }
    for (reason, found) in malformed {
      let what = found.count == 1 ? "line is malformed and was" : "lines are malformed and were"
      lines.append(
        "! \(grouped(found.count)) \(what) dropped: \(reason.rawValue); the first is line "
          + "\(grouped(found.first)), \(found.text).")
    }
    if packer.isCutOff { lines.append("! The recording is cut off in its last line, which is one of these.") }
    if packer.mayBeCutOff {
      lines.append(
        "! The last line has no line feed: if the recording was cut off there, its event may be wrong.")
    }
    return lines
  }

  /// The malformed lines by reason, in the order of the first of each.
  private var malformed: [(Malformation, MalformedLines)] {
    packer.dropped.malformed.sorted { $0.value.first < $1.value.first }.map { ($0.key, $0.value) }
  }

  private var reasons: [String] {
    let dropped = packer.dropped
    var reasons: [String] = []
    if dropped.comments > 0 { reasons.append(counted(dropped.comments, "comment")) }
    if dropped.callChains > 0 { reasons.append(counted(dropped.callChains, "line") + " of call chains") }
    for (kind, count) in Self.sorted(dropped.otherLines) {
      reasons.append(counted(count, "line") + " \(kind)")
    }
    if dropped.hiddenPointers > 0 {
      reasons.append(counted(dropped.hiddenPointers, "event") + " with a hidden pointer")
    }
    for (name, count) in Self.sorted(dropped.others) {
      reasons.append("\(grouped(count)) \(name) (no allocation)")
    }
    if dropped.beyondLimit > 0 { reasons.append(counted(dropped.beyondLimit, "event") + " beyond --events") }
    return reasons
  }

  /// The largest counts first, and equal ones by name.
  static func sorted(_ counts: [String: UInt64]) -> [(key: String, value: UInt64)] {
    counts.sorted { ($1.value, $0.key) < ($0.value, $1.key) }
  }

  /// A row of JSON, and one for each reason for which lines are malformed.
  var json: String { ([row] + malformed.map(Self.row)).joined(separator: "\n") }

  private static func row(_ reason: Malformation, _ found: MalformedLines) -> String {
    var row = JSONRow("malformed")
    row.add("reason", reason.rawValue)
    row.add("lines", found.count)
    row.add("first_line", found.first)
    row.add("text", found.text)
    return row.text
  }

  private var row: String {
    let dropped = packer.dropped
    var row = JSONRow("pack")
    row.add("source", source)
    row.add("output", output)
    for kind in (0..<TraceKind.count).compactMap({ TraceKind(rawValue: UInt8($0)) }) {
      row.add(kind.description.description, packer.eventsByKind[Int(kind.rawValue)])
    }
    row.add("failed", packer.failedRequests)
    row.add("null_frees", packer.nullFrees)
    row.add("lost", dropped.lost)
    row.add("overwritten", dropped.overwritten)
    row.add("comments", dropped.comments)
    row.add("call_chains", dropped.callChains)
    row.add("hidden_pointers", dropped.hiddenPointers)
    row.add("other_events", dropped.others.values.reduce(0, +))
    row.add("other_lines", dropped.otherLines.values.reduce(0, +))
    row.add("malformed_lines", dropped.malformed.values.reduce(0) { $0 + $1.count })
    row.add("beyond_limit", dropped.beyondLimit)
    row.add("caches", UInt64(counts.caches))
    row.add("objects", UInt64(counts.objects))
    row.add("pages", UInt64(counts.pages))
    row.add("peak_objects", UInt64(counts.peakObjects))
    row.add("peak_object_bytes", counts.peakBytes)
    row.add("peak_pages", UInt64(counts.peakPages))
    row.add("text_bytes", packer.bytes)
    row.add("bytes", UInt64(size))
    return row.text
  }
}
