// The registry of figures and tunables: rows that each layer adds at boot, read by the console, the
// host tool and a user's own code the same way.
//
// The table has a fixed size and lives in memory that the caller supplies. Rows are added during assembly and never
// removed, so readers need no lock. A reader is a C function with a context word. Its answer is exact when nothing runs,
// else at most one operation for each processor behind.

import CPlatform

/// The unit of a figure.
@frozen public enum StatisticUnit: UInt8, Sendable {
  /// Bytes of memory.
  case bytes
  /// Pages, or frames.
  case pages
  /// Calls of an allocator.
  case requests
  /// Objects of a cache.
  case objects
  /// Boundary tags.
  case tags
  /// Events, which the description names.
  case events
  /// Ticks of the machine's timer.
  case ticks
  /// Steps of a search.
  case steps
  /// Steps of the cycle counter: instructions on a machine that counts these, else cycles.
  case cycles
  /// Processors.
  case processors
  /// Passes of a contiguous request.
  case passes
  /// One of the named choices, by its number.
  case choice
  /// 0 is off, 1 is on.
  case switchOnOff
}

/// How a figure changes.
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
  /// The name, its parts separated by dots.
  public let name: StaticString
  /// The member of a family: the last part of the name.
  public private(set) var member: ShortName?
  /// A description in a few words.
  public let about: StaticString
  /// The unit of the value.
  public let unit: StatisticUnit
  /// How the value changes.
  public let kind: StatisticKind
  /// For unit `choice`: the names of the values in the order of their numbers, `|` between them.
  public let choices: StaticString?
  /// The values that a tunable takes. This is the one place that says so: `set` refuses all others.
  public let range: ClosedRange<UInt64>
  var context: UnsafeMutableRawPointer?
  let read: @convention(c) (UnsafeMutableRawPointer?) -> UInt64
  let write: (@convention(c) (UnsafeMutableRawPointer?, UInt64) -> Void)?

  /// Describes a row: `read` computes its value, and `write` sets a tunable to one of `range`. Both get `context`.
  /// A switch and a choice have the range of their words.
  public init(
    _ name: StaticString, _ unit: StatisticUnit, _ kind: StatisticKind, _ about: StaticString,
    choices: StaticString? = nil, range: ClosedRange<UInt64> = 0...UInt64.max,
    context: UnsafeMutableRawPointer?,
    read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64,
    write: (@convention(c) (UnsafeMutableRawPointer?, UInt64) -> Void)? = nil
  ) {
    self.name = name
    self.unit = unit
    self.kind = kind
    self.about = about
    self.choices = choices
    switch unit {
    case .switchOnOff: self.range = 0...1
    case .choice: self.range = 0...Self.lastChoice(of: choices)
    case .bytes, .pages, .requests, .objects, .tags, .events, .steps, .ticks, .cycles, .processors, .passes:
      self.range = range
    }
    self.context = context
    self.read = read
    self.write = write
  }

  /// The number of the last of `choices`.
  private static func lastChoice(of choices: StaticString?) -> UInt64 {
    guard let choices else { return .max }
    var last: UInt64 = 0
    for i in 0..<choices.utf8CodeUnitCount where choices.utf8Start[i] == UInt8(ascii: "|") { last += 1 }
    return last
  }

  /// The whole name, spaces of a member's name as underscores.
  package var fullName: Line {
    var line = Line(name)
    guard let member else { return line }
    line.append(".")
    for i in 0..<member.count {
      line.append(byte: member[i] == UInt8(ascii: " ") ? UInt8(ascii: "_") : member[i])
    }
    return line
  }

  /// Computes the value.
  public var value: UInt64 { read(context) }

  /// The row of a family's member.
  fileprivate func tunable(of member: ShortName, _ context: UnsafeMutableRawPointer) -> Statistic {
    var row = self
    (row.member, row.context) = (member, context)
    return row
  }

  /// Sets a tunable to a value of its `range`; answers whether it was accepted, or why not.
  public func set(_ value: UInt64) -> cp_setting {
    guard let write else { return .read_only }
    guard range.contains(value) else { return .out_of_range }
    write(context, value)
    return .accepted
  }
}

/// Tunables of one kind for each member of a list that may grow, such as `kmem.limit.NAME` for each cache.
public struct StatisticFamily {
  /// The tunable of a member, with the context of the whole list.
  let row: Statistic
  /// Indices of members are below this.
  let limit: Int
  /// Finds the context of the member at an index, and writes its name, a `ShortName`; nil where there is none.
  let findMember:
    @convention(c) (
      _ list: UnsafeMutableRawPointer?, _ index: Int, _ name: UnsafeMutableRawPointer
    ) -> UnsafeMutableRawPointer?

  /// Describes the tunables by `row`, which has the first parts of the name and the context of the list. Its functions
  /// get the context of a member, which `findMember` finds.
  package init(
    _ row: Statistic, limit: Int,
    findMember:
      @escaping @convention(c) (
        _ list: UnsafeMutableRawPointer?, _ index: Int, _ name: UnsafeMutableRawPointer
      ) -> UnsafeMutableRawPointer?
  ) {
    (self.row, self.limit, self.findMember) = (row, limit, findMember)
  }
}

/// The table of all figures of an instance: a handle.
public struct Statistics {
  struct State {
    var count: Int
    var capacity: Int
    var families: InlineArray<4, StatisticFamily?> = .init(repeating: nil)
  }
  let state: UnsafeMutablePointer<State>
  let rows: UnsafeMutablePointer<Statistic>

  /// Computes the bytes that a registry of `capacity` rows needs.
  package static func size(capacity: Int) -> ByteCount {
    ByteCount(headSize + capacity * MemoryLayout<Statistic>.stride)
  }

  private static var headSize: Int { Alignment.cacheLine.roundUp(MemoryLayout<State>.size) }

  /// Makes an empty registry in `memory`, aligned to 64 bytes.
  package init(_ memory: UnsafeMutableRawPointer, capacity: Int) {
    state = memory.bindMemory(to: State.self, capacity: 1)
    state.initialize(to: State(count: 0, capacity: capacity))
    rows = (memory + Self.headSize).bindMemory(to: Statistic.self, capacity: capacity)
  }

  /// Adds a row. Only during assembly, by one processor. Traps when the table is full.
  public func add(_ row: Statistic) {
    precondition(state.pointee.count < state.pointee.capacity, "the table of statistics is full")
    (rows + state.pointee.count).initialize(to: row)
    state.pointee.count += 1
  }

  /// Adds a family of tunables. Only during assembly, by one processor. Traps when there are four.
  package func add(_ family: StatisticFamily) {
    var index = 0
    while state.pointee.families[index] != nil { index += 1 }
    state.pointee.families[index] = family
  }

  /// Visits the tunables of all families' members, as they are now.
  public func forEachMember(_ body: (Statistic) -> Void) {
    for index in 0..<4 {
      guard let family = state.pointee.families[index] else { continue }
      var name = ShortName("")
      for member in 0..<family.limit {
        let context = withUnsafeMutablePointer(to: &name) {
          family.findMember(family.row.context, member, $0)
        }
        if let context { body(family.row.tunable(of: name, context)) }
      }
    }
  }

  /// Rows that were added.
  public var count: Int { state.pointee.count }
  /// The row at `index`, in the order in which they were added.
  public subscript(index: Int) -> Statistic {
    precondition(index >= 0 && index < count)
    return rows[index]
  }

  /// Returns the row called `name`, or nil. One pass over the rows.
  public func row(named name: StaticString) -> Statistic? {
    for index in 0..<count where rows[index].name.isSame(as: name) { return rows[index] }
    return nil
  }

  /// Computes the value of the row called `name`; nil when there is none. One pass over the rows.
  public func value(of name: StaticString) -> UInt64? {
    row(named: name)?.value
  }
}

extension StaticString {
  /// Whether both texts have the same bytes. `ShortName` keeps 31 bytes of a text only.
  fileprivate func isSame(as other: StaticString) -> Bool {
    guard utf8CodeUnitCount == other.utf8CodeUnitCount else { return false }
    for i in 0..<utf8CodeUnitCount where utf8Start[i] != other.utf8Start[i] { return false }
    return true
  }
}

// Rows are added by one processor, during assembly. Their functions read counters from any processor.
extension Statistics: @unchecked Sendable {}
extension Statistic: @unchecked Sendable {}
