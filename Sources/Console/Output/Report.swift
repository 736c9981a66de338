// A result in sentences, described once: a person reads them, a tool gets one row of the figures in them.

import MemoryPrimitives

/// The sentences of a result.
struct Report {
  let console: Shell

  /// Adds a sentence. `isPrinted` is whether a person reads it: a row has all its figures in any case.
  func write(_ statement: Statement, if isPrinted: Bool = true) {
    if console.isJSON {
      statement.writeFigures { console.terminal.write($0) }
    } else if isPrinted {
      console.print(statement.text)
    }
  }

  /// Adds figures for tools only.
  func keep(_ statement: Statement) { write(statement, if: false) }

  /// Adds a cost and its unit, which depends on the machine, for tools only.
  func keep(cost: UInt64) {
    keep("\(key: "cost", only: cost)\(key: "unit", only: .words(console.costUnit))")
  }
}

extension Statement.Value {
  /// An address, if there is one.
  static func address(_ address: VirtualAddress?) -> Self {
    address.map { .hex($0.rawValue, digits: 16) } ?? .none
  }
}

extension Shell {
  /// Reports a result of `kind` in the sentences that `body` adds.
  func report(_ kind: StaticString, _ body: (Report) -> Void) {
    if isJSON { row(kind) { _ in body(Report(console: self)) } } else { body(Report(console: self)) }
  }
}
