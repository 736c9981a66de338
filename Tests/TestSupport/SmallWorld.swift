// Every sequence of a few operations, on a system that is so small that all of them can be tried.
//
// Random histories rarely meet a particular order of operations; here each order is met. Most mistakes show in some
// small example (Jackson, "Software Abstractions", 2006: the small scope hypothesis).

/// A small system beside its model. The choices must follow from the operations that were carried out since the start.
package protocol SmallWorld {
  /// Operations that are possible now, at least one; they are numbered from 0.
  var choices: Int { get }
  /// Carries an operation out on system and model. Returns the mistake in its answer, or nil.
  mutating func carryOut(_ choice: Int) -> String?
  /// Checks all invariants, and compares the system with the model. Returns the mistake that it finds, or nil.
  func check() -> String?
  /// Restores the start. Returns the mistake that it finds, or nil.
  mutating func reset() -> String?
}

/// A walk over all sequences of operations in a small world, depth first.
package struct SequenceWalk<World: SmallWorld> {
  package var world: World
  /// Sequences that were carried out and checked, by their length.
  package private(set) var visited: [Int]
  private let length: Int
  /// The current sequence, and how many choices there were at each of its operations.
  private var path: [Int] = []
  private var widths: [Int] = []

  package init(of length: Int, in world: World) {
    self.world = world
    self.length = length
    visited = Array(repeating: 0, count: length + 1)
  }

  /// Carries out every sequence of at most `length` operations, and checks after each operation. A prefix is carried out
  /// again for each of its continuations. Returns the first mistake with its sequence, or nil.
  package mutating func run() -> String? {
    repeat {
      if let wrong = repeatPrefix() ?? extend() ?? world.reset() { return "\(wrong), in \(path)" }
    } while advance()
    return nil
  }

  /// Carries out all but the last operation, which were checked before.
  private mutating func repeatPrefix() -> String? {
    for (choice, width) in zip(path.dropLast(), widths) {
      if world.choices != width { return "a repetition differs" }
      if let wrong = world.carryOut(choice) { return wrong }
    }
    return nil
  }

  /// Carries out the last operation, and goes on with first choices to the full length.
  private mutating func extend() -> String? {
    if path.isEmpty { append() }
    while true {
      visited[path.count] += 1
      if let wrong = world.carryOut(path[path.count - 1]) ?? world.check() { return wrong }
      if path.count == length { return nil }
      append()
    }
  }

  private mutating func append() {
    path.append(0)
    widths.append(world.choices)
  }

  /// Turns the path into the next one to carry out. Answers false when there is none.
  private mutating func advance() -> Bool {
    while let last = path.last {
      if last + 1 < widths[path.count - 1] {
        path[path.count - 1] = last + 1
        return true
      }
      path.removeLast()
      widths.removeLast()
    }
    return false
  }
}
