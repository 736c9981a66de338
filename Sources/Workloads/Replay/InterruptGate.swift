// The way to interrupt priority, for workloads that run there. The caller that runs them supplies it.

/// Runs work in an interrupt handler. Copyable.
@frozen @usableFromInline package struct InterruptGate {
  /// The work to run, given its argument.
  @usableFromInline package typealias Body = @convention(c) (_ argument: UnsafeMutableRawPointer) -> Void
  /// Runs `Body` in an interrupt handler, and returns after it.
  @usableFromInline package typealias Enter =
    @convention(c) (_ context: UnsafeMutableRawPointer?, Body, _ argument: UnsafeMutableRawPointer) -> Void

  let context: UnsafeMutableRawPointer?
  let enter: Enter

  /// Creates a gate. `enter` interrupts the processor that calls it, runs the body in the handler, with interrupts
  /// off, and returns after that. Its first argument is `context`.
  package init(_ context: UnsafeMutableRawPointer?, enter: @escaping Enter) {
    self.context = context
    self.enter = enter
  }

  /// Runs `body` in an interrupt handler. Call it with interrupts on and no spin lock held.
  func run(_ argument: UnsafeMutableRawPointer, _ body: Body) { enter(context, body, argument) }
}
