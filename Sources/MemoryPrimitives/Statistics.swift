// The registry of figures and tunables: rows that each layer adds at boot, read by the console, the
// host tool and a user's own code the same way.
//
// The table has a fixed size and lives in memory that the caller gives; rows are added during assembly
// and never removed, so readers need no lock. A reader is a C function with a context word; it answers
// exactly when nothing runs, and is at most one operation a processor behind otherwise.

import CPlatform

/// What a figure is a number of.
@frozen public enum StatisticUnit: UInt8, Sendable {
  case bytes, pages, requests, objects, tags, events, ticks, instructions, processors, passes
  case choice, switchOnOff
}

@frozen public enum StatisticKind: UInt8, Sendable {
  /// Only rises.
  case counter
  /// Goes up and down.
  case gauge
  /// Can be set.
  case tunable
}

/// One named figure.
public struct Statistic {
  public let name: StaticString
  public let about: StaticString
  public let unit: StatisticUnit
  public let kind: StatisticKind
  /// For unit `choice`: the values' words, `|` between them, in the order of their numbers.
  public let choices: StaticString?
  let context: UnsafeMutableRawPointer?
  let reader: @convention(c) (UnsafeMutableRawPointer?) -> UInt64
  let writer: (@convention(c) (UnsafeMutableRawPointer?, UInt64) -> cp_setting)?

  public init(
    _ name: StaticString, _ unit: StatisticUnit, _ kind: StatisticKind, _ about: StaticString,
    choices: StaticString? = nil, context: UnsafeMutableRawPointer?,
    read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64,
    write: (@convention(c) (UnsafeMutableRawPointer?, UInt64) -> cp_setting)? = nil
  ) {
    self.name = name
    self.unit = unit
    self.kind = kind
    self.about = about
    self.choices = choices
    self.context = context
    reader = read
    writer = write
  }

  public var value: UInt64 { reader(context) }

  /// Sets a tunable, or says why not.
  public func set(_ value: UInt64) -> cp_setting { writer?(context, value) ?? .read_only }
}

/// The table of all figures of an instance: a handle.
public struct Statistics {
  struct State {
    var count: Int
    var capacity: Int
  }
  let state: UnsafeMutablePointer<State>
  let rows: UnsafeMutablePointer<Statistic>

  /// Bytes that a registry of `capacity` rows needs.
  public static func size(capacity: Int) -> ByteCount {
    ByteCount(64 + capacity * MemoryLayout<Statistic>.stride)
  }

  /// An empty registry in `memory`, aligned to 64 bytes.
  public init(_ memory: UnsafeMutableRawPointer, capacity: Int) {
    state = memory.bindMemory(to: State.self, capacity: 1)
    state.initialize(to: State(count: 0, capacity: capacity))
    rows = (memory + 64).bindMemory(to: Statistic.self, capacity: capacity)
  }

  /// Adds a row. Only during assembly, by one processor. Traps when the table is full.
  public func add(_ row: Statistic) {
    precondition(state.pointee.count < state.pointee.capacity, "the table of statistics is full")
    (rows + state.pointee.count).initialize(to: row)
    state.pointee.count += 1
  }

  public var count: Int { state.pointee.count }
  public subscript(index: Int) -> Statistic {
    precondition(index >= 0 && index < count)
    return rows[index]
  }

  /// What the row called `name` reads; nil when there is none. One pass over the rows.
  public func value(of name: StaticString) -> UInt64? {
    let name = Name(name)
    for index in 0..<count where Name(rows[index].name) == name { return rows[index].value }
    return nil
  }
}
