/// Keeps a token that is used once where an array or a closure needs a value that can be copied.
public final class Kept<Token: ~Copyable>: @unchecked Sendable {
  private let place: UnsafeMutablePointer<Token>

  public init(_ token: consuming Token) {
    place = .allocate(capacity: 1)
    place.initialize(to: token)
  }
  deinit { place.deallocate() }

  /// The token, which stays here.
  public var value: Token { _read { yield place.pointee } }
  /// Moves the token out, once.
  public func move() -> Token { place.move() }
}
