// `strata trace show`: a packed trace, readably: its header, its tables by how often each entry is used, its events.

import ArgumentParser
import Foundation
import MemoryPrimitives
import Workloads

struct TraceShow: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "show",
    abstract: "Show a packed trace: header, tables and events.",
    discussion: """
      Caches and operations are sorted by their events. A garbled trace is shown up to the damage.

      Examples:
        strata trace show build.trace                         the first 20 events
        strata trace show build.trace --first 4711 --count 9  9 from the 4711th on
        strata trace show build.trace --count 0 --rows 1000   the tables alone
        strata trace show build.trace -j | jq 'select(.cache == "dentry")'

      Exit status: 0, 65 for a bad trace.
      """)

  @Argument(help: "The packed trace; - for standard input.")
  var file: String

  @Option(help: "The first event to show, from 1.")
  var first: UInt64 = 1

  @Option(help: "How many events to show.")
  var count: UInt64 = 20

  @Option(help: "How many rows of each table to show.")
  var rows = 10

  @Flag(name: [.customShort("j"), .long], help: "Print rows of JSON instead of tables.")
  var json = false

  func validate() throws {
    if first == 0 { throw ValidationError("--first is 1 or more.") }
    if rows < 0 { throw ValidationError("--rows is 0 or more.") }
  }

  func run() throws {
    try complaining {
      let data = try packedTrace(at: file)
      let name = file == "-" ? "standard input" : file
      try data.withUnsafeBytes { bytes in
        do {
          try show(PackedTrace(bytes), name)
        } catch let error as TraceError {
          throw Complaint(name + error.describe("").text, .dataError)
        }
      }
    }
  }

  private func show(_ trace: PackedTrace, _ name: String) throws {
    let events = UInt64(trace.counts.events)
    guard first <= events || count == 0 || events == 0 else {
      throw Complaint("\(name) has \(counted(events, "event")): --first is too high", .usage)
    }
    let listing = TraceListing(trace)
    try printResult((json ? listing.headerJSON : listing.header(name)).joined(separator: "\n"))
    let tables =
      json
      ? listing.cachesJSON(rows) + listing.operationsJSON(rows)
      : listing.caches(rows) + listing.operations(rows)
    if !tables.isEmpty { try printResult(tables.joined(separator: "\n")) }
    if !json && count > 0 && events > 0 { try printResult("\n" + TraceListing.eventHeading) }
    var cursor = trace.records
    var (number, left): (UInt64, UInt64) = (0, count)
    // Lines are gathered, for a write of each would take most of the time.
    var lines: [String] = []
    do {
      while left > 0, let event = try cursor.next() {
        number += 1
        guard number >= first else { continue }
        lines.append(json ? listing.eventJSON(number, event) : listing.event(number, event))
        left -= 1
        if lines.count == 1000 {
          try printResult(lines.joined(separator: "\n"))
          lines = []
        }
      }
    } catch let error as TraceError {
      if !lines.isEmpty { try printResult(lines.joined(separator: "\n")) }
      throw error
    }
    if !lines.isEmpty { try printResult(lines.joined(separator: "\n")) }
    // The damage may lie behind the events that were shown.
    if let damage = listing.damage { throw damage }
    try trace.validate()
  }
}
