// The way to interrupt priority, for workloads that are to run there: whoever runs them says how to get there.

/// Runs work in an interrupt handler. Copyable.
@frozen public struct InterruptGate {
  /// What is to run, given its argument.
  public typealias Body = @convention(c) (_ argument: UnsafeMutableRawPointer) -> Void
  public typealias Enter =
    @convention(c) (_ context: UnsafeMutableRawPointer?, Body, _ argument: UnsafeMutableRawPointer) -> Void

  let context: UnsafeMutableRawPointer?
  let enter: Enter

  /// `enter` makes an interrupt come to the processor that calls it, runs the body in its handler, with interrupts
  /// off, and returns when that has run. `context` comes first.
  public init(_ context: UnsafeMutableRawPointer?, enter: @escaping Enter) {
    self.context = context
    self.enter = enter
  }

  /// Interrupts are on, and no spin lock is held.
  func run(_ argument: UnsafeMutableRawPointer, _ body: Body) { enter(context, body, argument) }
}
