// A packed trace as lines of text and as rows of JSON.

import MemoryPrimitives
import Workloads

/// A trace, and how often it uses each entry of its tables.
struct TraceListing {
  private let trace: PackedTrace
  /// Events by operation.
  private var uses: [UInt64]
  private var usesOfCaches: [UInt64]
  /// The error that ends the records early.
  private(set) var damage: TraceError?

  /// Reads all records.
  init(_ trace: PackedTrace) {
    self.trace = trace
    uses = Array(repeating: 0, count: Int(trace.counts.operations))
    usesOfCaches = Array(repeating: 0, count: Int(trace.counts.caches))
    var cursor = trace.records
    do throws(TraceError) {
      while let event = try cursor.next() {
        uses[Int(event.operation)] += 1
        let cache = trace.operation(event.operation).cache
        if cache < trace.counts.caches { usesOfCaches[Int(cache)] += 1 }
      }
    } catch {
      damage = error
    }
  }

  /// The printable bytes of a string; nil for none.
  private func string(_ index: UInt32) -> String? {
    guard index < trace.counts.strings else { return nil }
    let text = String(decoding: trace.string(index), as: UTF8.self)
    return String(text.map { $0.isASCII && $0.asciiValue.map { $0 < 0x20 || $0 == 0x7f } == true ? "?" : $0 })
  }

  private func cacheName(_ index: UInt32) -> String? {
    index < trace.counts.caches ? string(trace.cache(index).name) : nil
  }

  // MARK: Header

  func header(_ name: String) -> [String] {
    let counts = trace.counts
    let title = string(counts.title).map { "\"\($0)\", " } ?? ""
    return [
      "\(name): \(title)\(grouped(trace.size.rawValue)) bytes, version \(PackedTrace.version)",
      "\(counted(UInt64(counts.events), "event")) of \(counted(UInt64(counts.operations), "operation")), on "
        + "\(counted(UInt64(counts.processors), "processor")); "
        + "\(counted(UInt64(counts.dropped), "line")) of the source left out",
      "\(counted(UInt64(counts.objects), "object")), at most \(grouped(counts.peakObjects)) live: \(grouped(counts.peakBytes)) "
        + "bytes, for which the traced kernel gave \(grouped(counts.peakAllocated))",
      "\(counted(UInt64(counts.pages), "frame")), at most \(grouped(counts.peakPages)) live",
    ]
  }

  var headerJSON: [String] {
    let counts = trace.counts
    var row = JSONRow("trace")
    row.add("title", string(counts.title))
    row.add("version", UInt64(PackedTrace.version))
    row.add("bytes", trace.size.rawValue)
    row.add("events", UInt64(counts.events))
    row.add("operations", UInt64(counts.operations))
    row.add("caches", UInt64(counts.caches))
    row.add("strings", UInt64(counts.strings))
    row.add("processors", UInt64(counts.processors))
    row.add("objects", UInt64(counts.objects))
    row.add("pages", UInt64(counts.pages))
    row.add("peak_objects", UInt64(counts.peakObjects))
    row.add("peak_object_bytes", counts.peakBytes)
    row.add("peak_allocated_bytes", counts.peakAllocated)
    row.add("peak_pages", UInt64(counts.peakPages))
    row.add("dropped", UInt64(counts.dropped))
    return [row.text]
  }

  // MARK: Tables

  /// The indices of the largest counts, at most `rows`.
  private static func largest(_ counts: [UInt64], _ rows: Int) -> [UInt32] {
    let order = counts.indices.sorted { (counts[$1], $0) < (counts[$0], $1) }
    return order.prefix(rows).map { UInt32($0) }
  }

  func caches(_ rows: Int) -> [String] {
    guard rows > 0, !usesOfCaches.isEmpty else { return [] }
    var lines = ["", "cache".left(28) + "size".right(8) + "taken".right(8) + "events".right(11)]
    for index in Self.largest(usesOfCaches, rows) {
      let cache = trace.cache(index)
      lines.append(
        (string(cache.name) ?? "-").left(28) + grouped(cache.size).right(8)
          + grouped(cache.allocated).right(8)
          + grouped(usesOfCaches[Int(index)]).right(11))
    }
    return lines + Self.others(usesOfCaches.count - rows)
  }

  func operations(_ rows: Int) -> [String] {
    guard rows > 0, !uses.isEmpty else { return [] }
    var lines = [
      "",
      "operation".left(22) + "events".right(11) + "  " + "of what".left(14) + "cache, flags and call site",
    ]
    for index in Self.largest(uses, rows) {
      let operation = trace.operation(index)
      lines.append(
        "\(operation.kind.description)".left(22) + grouped(uses[Int(index)]).right(11) + "  "
          + Self.extent(operation).left(14) + details(operation))
    }
    return lines + Self.others(uses.count - rows)
  }

  private static func others(_ count: Int) -> [String] { count > 0 ? ["\(grouped(count)) others"] : [] }

  func cachesJSON(_ rows: Int) -> [String] {
    Self.largest(usesOfCaches, rows).map { index in
      var row = JSONRow("trace_cache")
      row.add("number", UInt64(index))
      row.add("name", cacheName(index))
      row.add("size", UInt64(trace.cache(index).size))
      row.add("allocated", UInt64(trace.cache(index).allocated))
      row.add("events", usesOfCaches[Int(index)])
      return row.text
    }
  }

  func operationsJSON(_ rows: Int) -> [String] {
    Self.largest(uses, rows).map { index in
      var row = JSONRow("trace_operation")
      row.add("number", UInt64(index))
      add(trace.operation(index), to: &row)
      row.add("events", uses[Int(index)])
      return row.text
    }
  }

  // MARK: Events

  static let eventHeading =
    "event".right(9) + "cpu".right(5) + "  " + "context".left(9) + "kind".left(22) + "identity".left(16)
    + "of what".left(14) + "cache, flags and call site"

  func event(_ number: UInt64, _ event: TraceEvent) -> String {
    let operation = trace.operation(event.operation)
    let what = event.kind.isAboutPages ? "frame" : "object"
    let identity = event.identity == TraceEvent.noIdentity ? "none" : "\(what) \(event.identity)"
    return grouped(number).right(9) + "\(event.processor)".right(5) + "  " + Self.name(event.context).left(9)
      + "\(event.kind.description)".left(22) + identity.left(16) + Self.extent(operation).left(14)
      + details(operation)
  }

  func eventJSON(_ number: UInt64, _ event: TraceEvent) -> String {
    var row = JSONRow("trace_event")
    row.add("number", number)
    row.add("processor", UInt64(event.processor))
    row.add("context", Self.name(event.context))
    row.add("identity", event.identity == TraceEvent.noIdentity ? nil : UInt64(event.identity))
    add(trace.operation(event.operation), to: &row)
    return row.text
  }

  private static func name(_ context: TraceContext) -> String {
    switch context {
    case .thread: "thread"
    case .softInterrupt: "soft"
    case .hardInterrupt: "hard"
    }
  }

  /// `72 in 96` bytes, or `order 3`.
  private static func extent(_ operation: TraceOperation) -> String {
    if operation.kind.isAboutPages { return "order \(operation.order)" }
    guard operation.kind.allocates else { return "" }
    return "\(operation.requested) in \(operation.allocated)"
  }

  private func details(_ operation: TraceOperation) -> String {
    let parts = [cacheName(operation.cache), Self.names(operation), string(operation.site)].compactMap { $0 }
    return parts.isEmpty ? "-" : parts.joined(separator: "  ")
  }

  private static func names(_ operation: TraceOperation) -> String? {
    let flags: [(TraceFlags, String)] = [
      (.zero, "zero"), (.atomic, "atomic"), (.noWait, "nowait"), (.movable, "movable"),
      (.reclaimable, "reclaimable"),
    ]
    var names = flags.filter { operation.flags.contains($0.0) }.map(\.1)
    switch operation.limit {
    case .none: break
    case .dma: names.append("dma")
    case .dma32: names.append("dma32")
    case .highmem: names.append("highmem")
    }
    return names.isEmpty ? nil : names.joined(separator: "|")
  }

  private func add(_ operation: TraceOperation, to row: inout JSONRow) {
    let (isPages, allocates) = (operation.kind.isAboutPages, operation.kind.allocates)
    row.add("event", "\(operation.kind.description)")
    row.add("site", string(operation.site))
    row.add("cache", cacheName(operation.cache))
    row.add("requested", !isPages && allocates ? UInt64(operation.requested) : nil)
    row.add("allocated", !isPages && allocates ? UInt64(operation.allocated) : nil)
    row.add("order", isPages ? UInt64(operation.order) : nil)
    row.add("flags", Self.names(operation))
  }
}
